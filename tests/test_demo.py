from __future__ import annotations

import json
import time

import pytest
import torch

from fxprune.demo import DemoResult, run_demo
from fxprune.errors import BudgetError, ConfigError
from fxprune.runtime import run_onnx
from fxprune.serialize import load

pytest.importorskip("sklearn")

FILES = [
    *("compact.onnx", "compact.pt", "dense.onnx", "log.csv", "log.png"),
    *("report.html", "report.md", "result.json"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo") / "made" / "here"


@pytest.fixture(scope="module")
def result(folder):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = run_demo(folder, quick=True, macs=0.4)
    assert torch.equal(torch.get_rng_state(), state)
    return found


def test_the_budget_is_met_and_the_cut_is_exact(result):
    assert isinstance(result, DemoResult)
    training = result.training
    assert training.selection.reached == pytest.approx(0.4, rel=0.01)
    assert training.verification.passed
    assert max(training.dense.onnx_error, training.compact.onnx_error) < 1e-4
    widths = [group.kept for group in result.report.groups]
    assert all(width % 16 == 0 for width in widths)


def test_quick_is_one_epoch_each(result):
    assert (result.training.epochs, result.test_images) == (1, 359)
    assert [(row.stage, row.epoch) for row in result.training.rows] == [("dense", 1), ("ato", 1)]
    for accuracy in (result.accuracy_dense, result.accuracy_compact):
        assert 0 <= accuracy <= 1


def test_torch_and_onnxruntime_agree_on_every_image(result):
    for figures in (result.training.dense, result.training.compact):
        assert figures.accuracy.differing == 0


def test_files_are_written(result, folder):
    assert sorted(file.name for file in folder.iterdir()) == FILES
    assert sorted(path.name for path in result.files) == FILES
    assert all(path.parent == folder for path in result.files)
    assert result.training.compact.onnx == folder / "compact.onnx"
    compact, dense = ((folder / f"{name}.onnx").stat().st_size for name in ("compact", "dense"))
    assert compact < dense


def test_the_result_is_json(result, folder):
    data = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert data == json.loads(json.dumps(result.to_dict()))
    assert data["accuracy"]["test_images"] == 359
    assert data["accuracy"]["compact"] == data["accuracy"]["torch_compact"]
    assert data["selection"]["met"] is True
    assert data["report"]["macs_kept"] == pytest.approx(0.4, rel=0.01)
    assert data["report"]["after"]["latency"]["threads"] == 1


def test_the_reports_name_accuracy_macs_and_latency(result, folder):
    for text in (str(result), (folder / "report.md").read_text(encoding="utf-8")):
        assert "MACs kept 4" in text or "MACs kept 39" in text
        assert "(1 thread, batch 1, median of 30)" in text
        assert "359 test images, no fine-tuning" in text
        assert "accuracy, onnxruntime" in text
        assert "Budget: macs: asked 40.00%" in text
        assert "put 0 of 359 test images into different classes" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "(359 test images, in onnxruntime)" in page


def test_saved_and_exported_models_agree(result, folder):
    from torchvision.models import resnet18

    compact = load(folder / "compact.pt", resnet18(num_classes=10)).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = compact(x)
    found = torch.from_numpy(run_onnx(folder / "compact.onnx", x)[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("macs", [0, 1e-4])
def test_a_budget_out_of_reach_costs_no_training(tmp_path, macs):
    started = time.perf_counter()
    with pytest.raises(BudgetError, match="macs"):
        run_demo(tmp_path, macs=macs)
    assert time.perf_counter() - started < 10


def test_epochs_must_be_a_count(tmp_path):
    with pytest.raises(ConfigError, match="'epochs' argument must be an integer >= 1"):
        run_demo(tmp_path, epochs=0)


def test_the_directory_must_be_one(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="directory for the demo's files cannot be made"):
        run_demo(tmp_path / "file", quick=True)
