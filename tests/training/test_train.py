"""A whole run: what it writes, what it finds, and what it refuses before it trains."""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset
from training.runs import N_CLASSES, SETTINGS, data, ends, net, trained

import fxprune
from fxprune.data import image_folder
from fxprune.errors import BudgetError, ConfigError, InputError, LoadError
from fxprune.training import TrainSettings, train
from fxprune.training.stage import Stage


@pytest.fixture
def untrained(monkeypatch):
    """Make the first training step an error."""

    def step(*args):
        pytest.fail("it trains")

    monkeypatch.setattr(Stage, "_weight_step", step)


# -- what a run finds
def test_the_budget_is_met_and_the_cut_is_exact(whole) -> None:
    assert whole.selection.reached == pytest.approx(0.5, rel=0.01)
    assert whole.compact.macs / whole.dense.macs == pytest.approx(whole.selection.reached)
    assert whole.verification.max_rel_error < 1e-4
    assert max(whole.dense.onnx_error, whole.compact.onnx_error) < 1e-4


def test_both_networks_learn_and_onnxruntime_agrees(whole) -> None:
    for figures in (whole.dense, whole.compact):
        assert figures.accuracy.share > 0.8
        assert figures.accuracy.total == 40
        assert figures.accuracy.right == figures.accuracy.torch_right
        assert figures.accuracy.differing == 0


def test_the_figures_are_those_of_the_networks(whole) -> None:
    images, labels = data().test_images, data().test_labels
    for network, figures in (
        (whole.network, whole.compact),
        (whole.dense_network, whole.dense),
        (whole.gated, whole.compact),
    ):
        with torch.no_grad():
            right = int((network(images).argmax(1) == labels).sum())
        assert right == figures.accuracy.torch_right
    assert whole.compact.params == sum(p.numel() for p in whole.network.parameters())
    assert whole.dense.params == sum(p.numel() for p in net().parameters())


def test_the_files(whole) -> None:
    folder = whole.compact.onnx.parent
    written = {path.name for path in folder.iterdir()}
    assert written == {path.name for path in whole.files} | {"checkpoint.pt", "checkpoint.prev.pt"}
    assert {"compact.onnx", "dense.onnx", "compact.pt", "log.csv", "log.png"} < written
    loaded = fxprune.load(folder / "compact.pt", net())
    assert loaded.state_dict().keys() == whole.network.state_dict().keys()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    torch.load(folder / "checkpoint.pt", weights_only=True)


def test_the_log(whole) -> None:
    with whole.files[-2].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["stage"], r["epoch"]) for r in rows] == [
        (stage, str(n)) for stage in ("dense", "ato") for n in range(1, 7)
    ]
    assert [float(r["loss"]) for r in rows] == [row.loss for row in whole.rows]
    phases = [r["phase"] for r in rows if r["stage"] == "ato"]
    assert phases == sorted(phases, key=["warm-up", "search", "projection", "final"].index)
    assert phases[-1] == "final"
    assert float(rows[-1]["expected"]) == whole.selection.reached


def test_the_result_in_words_and_as_data(whole) -> None:
    text = str(whole)
    for part in ("dense", "compact", "MACs", "accuracy, onnxruntime", "Budget: macs: asked 50.00%"):
        assert part in text
    assert "put 0 of 40 test images into different classes" in text
    found = json.loads(json.dumps(whole.to_dict()))
    figures = ["settled", "nu", "max_abs_error", "seconds", "epoch_seconds"]
    assert list(found) == ["dense", "compact", "target", *figures, "onnx"]
    assert found["target"] == {"macs": 0.5}
    assert found["dense"] == {
        "macs": whole.dense.macs,
        "params": whole.dense.params,
        "accuracy": whole.dense.accuracy.share,
    }
    assert found["onnx"] == str(whole.compact.onnx)
    assert 0 < found["seconds"] < 300


def test_the_model_is_not_changed_and_seeds_decide(whole, tmp_path) -> None:
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    again = trained(model, data(), dataclasses.replace(SETTINGS, dense=False), tmp_path)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    # The same with and without the dense network trained first.
    expected = {k: v for k, v in ends(whole).items() if k.startswith(("gated", "mask"))}
    assert all(torch.equal(again[k], v) for k, v in expected.items())


def test_a_finished_run_can_be_resumed(whole) -> None:
    again = trained(net(), data(), SETTINGS, whole.compact.onnx.parent, resume=True)
    assert all(torch.equal(v, ends(whole)[k]) for k, v in again.items())


# -- what it refuses
def test_a_folder_with_a_run_is_refused_untouched(whole, untrained) -> None:
    folder = whole.compact.onnx.parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="already holds a training run") as caught:
        train(net(), data(), SETTINGS, folder)
    assert "--resume" in caught.value.hint
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"lr": 0.1}, "settings.lr differs"),
        ({"seed": 1}, "settings.seed differs"),
        ({"epochs": 7}, "settings.epochs differs"),
        ({"ignore": ("0",)}, "group 0 differ"),
    ],
    ids=str,
)
def test_resuming_with_other_settings_is_refused(whole, untrained, changed, what) -> None:
    with pytest.raises(LoadError, match=what):
        train(
            net(),
            data(),
            dataclasses.replace(SETTINGS, **changed),
            whole.compact.onnx.parent,
            resume=True,
        )


def test_resuming_with_another_model_or_data_is_refused(whole, untrained) -> None:
    folder = whole.compact.onnx.parent
    other = net()
    other[9] = nn.Linear(32, N_CLASSES, bias=False)
    with pytest.raises(LoadError, match="model.9.bias differs"):
        train(other, data(), SETTINGS, folder, resume=True)
    with pytest.raises(LoadError, match="training data, test data differ"):
        train(net(), data(seed=1), SETTINGS, folder, resume=True)


def test_a_budget_out_of_reach_costs_no_training(tmp_path, untrained) -> None:
    for macs, error in ((0.001, BudgetError), (2, BudgetError)):
        with pytest.raises(error, match="macs"):
            train(net(), data(), TrainSettings(macs=macs, epochs=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_and_data_that_do_not_fit(tmp_path, untrained) -> None:
    def refused(error, match, model=None, given=None, settings=SETTINGS, out="out"):
        with pytest.raises(error, match=match):
            train(model or net(), given or data(), settings, tmp_path / out)

    wide = net()
    wide[9] = nn.Linear(32, 7)
    refused(ConfigError, "returns 7 scores, but the data has 4 classes", wide)
    refused(ConfigError, "The runtime trains classifiers", net()[:4])
    refused(InputError, "does not run", nn.Sequential(nn.Flatten(), nn.Linear(5, N_CLASSES)))
    refused(ConfigError, "must be a torch.nn.Module", "resnet18")
    refused(ConfigError, "must be a TrainSettings", settings={"macs": 0.5})
    refused(ConfigError, "'data' argument must be an ImageData", given=[1, 2])
    labelled = dataclasses.replace(data(), test_labels=data().test_labels + 1)
    refused(ConfigError, "labels must be 0 to 3", given=labelled)
    refused(ConfigError, "too few samples", given=data(n=1))
    unknown = dataclasses.replace(SETTINGS, method="guess")
    refused(ConfigError, "'method' argument must be one of ato", settings=unknown)
    refused(ConfigError, "no device", settings=dataclasses.replace(SETTINGS, device="abacus"))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, N_CLASSES))
    refused(ConfigError, "Nothing of this model can be pruned", flat)
    (tmp_path / "file").touch()
    refused(ConfigError, "folder of the training run cannot be made", out="file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_resuming_nothing_starts_from_the_beginning_and_says_so(tmp_path, caplog, monkeypatch):
    (tmp_path / "log.csv").write_text("of a run that was killed at once")

    def stop(*args):
        raise ConfigError("Enough.")

    monkeypatch.setattr(Stage, "_weight_step", stop)
    with caplog.at_level(logging.WARNING, "fxprune"), pytest.raises(ConfigError, match="Enough"):
        train(net(), data(), SETTINGS, tmp_path, resume=True)
    assert "starts from its beginning" in caplog.text
    assert (tmp_path / "log.csv").read_text().startswith("stage,step")
    (tmp_path / "compact.pt").write_text("somebody's")
    with pytest.raises(ConfigError, match="already holds"):
        train(net(), data(), SETTINGS, tmp_path, resume=True)


# -- other data, other models
def test_datasets_are_loaded_sample_by_sample(tmp_path, whole) -> None:
    given = data()
    pair = SimpleNamespace(
        train=TensorDataset(given.train_images, given.train_labels),
        test=TensorDataset(given.test_images, given.test_labels),
        n_classes=N_CLASSES,
        example=given.test_images[:1],
    )
    settings = dataclasses.replace(SETTINGS, dense=False)
    found, expected = trained(net(), pair, settings, tmp_path), ends(whole)
    names = [name for name in expected if name.startswith(("gated", "mask"))]
    assert all(torch.equal(found[name], expected[name]) for name in names)


def test_a_folder_of_images(tmp_path) -> None:
    draw = np.random.default_rng(0)
    for part, n in (("train", 12), ("val", 4)):
        for channel, name in enumerate(("red", "green")):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(n):
                pixels = draw.integers(0, 100, (8, 8, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / f"{number}.png")
    model = net()
    model[9] = nn.Linear(32, 2)
    settings = dataclasses.replace(
        SETTINGS, macs=None, params=0.6, dense=False, batch_size=4, epochs=4
    )
    found = train(model, image_folder(tmp_path / "images", size=8), settings, tmp_path / "out")
    assert found.to_dict()["dense"]["accuracy"] is None
    assert "not trained" in str(found)
    assert found.selection.reached == pytest.approx(0.6, rel=0.01)
    assert found.to_dict()["target"] == {"params": 0.6}
    assert not (tmp_path / "out" / "dense.onnx").exists()
    assert found.compact.accuracy.total == 8
    assert found.compact.accuracy.share > 0.8


class TwoHeads(nn.Module):
    """As in GoogLeNet: a second head in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.tail = net()[:6], net()[6:]
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, N_CLASSES))

    def forward(self, x):
        y = self.body(x)
        return (self.tail(y), self.aux(y)) if self.training else self.tail(y)


def test_auxiliary_heads_train_too(tmp_path) -> None:
    model = TwoHeads()
    found = trained(model, data(), dataclasses.replace(SETTINGS, epochs=2, shrink=False), tmp_path)
    for network in ("dense", "gated"):
        change = found[f"{network} aux.2.weight"] - model.aux[2].weight
        assert change.abs().max() > 0.05


def test_a_shrunk_network_is_proven_against_the_masked_one(tmp_path, monkeypatch) -> None:
    seen = []

    def noting(gated, compact, images):
        seen.append(gated)
        return fxprune.verify(gated, compact, images)

    monkeypatch.setattr("fxprune.training.conclude.verify", noting)
    found = train(net(), data(), dataclasses.replace(SETTINGS, epochs=2), tmp_path)
    (reference,) = seen
    assert found.gated.was_shrunk
    assert not reference.was_shrunk
    assert [g.size for g in reference.groups] == [g.size for g in found.gated.original_groups]
    for name, mask in found.gated.original_keep.items():
        assert torch.equal(reference.keep[name], mask)


def test_without_matplotlib_there_is_no_figure(tmp_path, monkeypatch, whole) -> None:
    from fxprune.training.conclude import draw
    from fxprune.training.figure import plot_log

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw(whole.rows, SETTINGS, tmp_path) == ()
    with pytest.raises(ConfigError, match=r"pip install 'fxprune\[plot\]'"):
        plot_log(whole.rows, "macs", 0.5, tmp_path / "log.png")
    assert list(tmp_path.iterdir()) == []
