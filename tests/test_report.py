from __future__ import annotations

import importlib
import json
import sys

import pytest
import torch
from small_nets import AuxHead
from torch import nn

from fxprune.api import auto_gate
from fxprune.errors import ConfigError, ExportError, InputError
from fxprune.latency import Latency
from fxprune.plot import plot_widths
from fxprune.report import Figures, GroupWidth, LayerShapes, Report, latency_line, report

# The package exports the function under the module's name.
module = importlib.import_module("fxprune.report")
IMAGE = torch.zeros(1, 3, 8, 8)
DENSE = Figures(1000, 200, 4000, Latency(3.2, 3.0, 3.5, 1, 1, 30))
SMALL = Figures(501, 50, 1000, Latency(2.1, 2.0, 2.2, 1, 1, 30))


def net(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 1)).eval()


@pytest.fixture(scope="module")
def pruned():
    """A gated model that keeps 3 of 8 channels, and its compact form."""
    gated = auto_gate(net(), IMAGE)
    gated.set_keep({"0": torch.arange(8) < 3})
    return gated, gated.compact()


@pytest.fixture(scope="module")
def measured(pruned):
    return report(*pruned, IMAGE, repeats=5)


@pytest.fixture
def no_export(monkeypatch):
    """Reports without the seconds that exports take."""

    def fail(*args, **kwargs):
        raise ExportError("No export here.")

    monkeypatch.setattr(module, "export_onnx", fail)


def test_figures_are_those_computed_by_hand(measured):
    assert measured.before.macs == 36 * (8 * 27 + 4 * 8)
    assert measured.after.macs == 36 * (3 * 27 + 4 * 3)
    assert (measured.before.params, measured.after.params) == (8 * 28 + 36, 3 * 28 + 16)
    assert measured.input_shapes == ((1, 3, 8, 8),)
    assert measured.notes == ()


def test_files_and_times_are_measured(measured):
    assert measured.before.file_bytes > measured.after.file_bytes > 0
    for one in (measured.before.latency, measured.after.latency):
        assert one.median_ms > 0
        assert (one.threads, one.batch, one.repeats) == (1, 1, 5)


def test_groups_of_a_gated_model_are_listed(measured):
    assert measured.groups == (GroupWidth("0", "channel", 8, 3),)


def test_parameters_are_compared_by_name(measured):
    assert measured.layers[0] == LayerShapes("0.weight", "Conv2d", (8, 3, 3, 3), (3, 3, 3, 3))
    assert [layer.name for layer in measured.layers] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_gated_model_counts_open_before_and_cut_after(pruned, measured, no_export):
    gated, _ = pruned
    found = report(gated, gated, IMAGE)
    assert found.before.macs == measured.before.macs
    assert found.after.macs == measured.after.macs
    assert found.layers == measured.layers
    assert gated.keep["0"].sum() == 3


def test_plain_models_need_not_have_the_same_parameters(no_export):
    found = report(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), net()[:1], IMAGE[..., :4])
    assert found.groups == ()
    assert LayerShapes("1.bias", "Linear", (2,), None) in found.layers
    assert "1.weight     Linear  2x4       none" in str(found)


def test_a_model_with_a_graph_per_mode_keeps_its_names(no_export):
    model = AuxHead().float()
    image = torch.zeros(1, 3, 6, 6)
    gated = auto_gate(model, image)
    gated.set_keep({g.name: torch.arange(g.size) < 2 for g in gated.groups})
    found = report(model, gated, image)
    names = [name for name, _ in model.named_parameters()]
    assert [layer.name for layer in found.layers] == names
    assert all(layer.after is not None for layer in found.layers)


def test_modes_of_the_models_stay(no_export):
    model = net().train()
    report(model, model, IMAGE)
    assert all(module.training for module in model.modules())


def test_without_latency_nothing_is_measured(pruned):
    found = report(*pruned, IMAGE, latency=False)
    assert found.before.latency is found.after.latency is None
    assert found.after.file_bytes > 0
    assert "latency" not in str(found)


def test_a_failed_export_is_a_note(pruned, no_export):
    found = report(*pruned, IMAGE)
    assert found.before.file_bytes is found.before.latency is None
    assert found.notes == ("The model before is not measured as an ONNX file: No export here.",)
    assert found.notes[0] in str(found)


def test_the_text_keeps_macs_and_time_apart():
    text = str(Report(DENSE, SMALL, ((1, 3, 8, 8),), (), ()))
    assert "MACs kept 50.1 %, parameters kept 25.0 %" in text
    assert "latency 3.2 ms -> 2.1 ms (1 thread, batch 1, median of 30)" in text
    assert "speed" not in text.lower()
    line = next(line for line in text.splitlines() if line.startswith("measured latency"))
    assert "%" not in line


def test_threads_and_batch_are_named():
    found = latency_line(Latency(0.5, 0, 0, 2, 8, 7), Latency(0.25, 0, 0, 2, 8, 7))
    assert found == "latency 0.5 ms -> 0.25 ms (2 threads, batch 8, median of 7)"


def test_the_text_has_a_row_per_module(measured):
    text = str(measured)
    assert "0.weight     Conv2d  8x3x3x3   3x3x3x3" in text
    assert "2.weight     Conv2d  4x8x1x1   4x3x1x1" in text
    assert "0        channel               8       3  37.5 %" in text


def test_layers_that_did_not_change_say_so(no_export):
    model = net()
    assert str(report(model, model, IMAGE)).count("unchanged") == 2


def test_markdown_holds_the_same_sections(measured):
    headings = [line for line in measured.to_markdown().splitlines() if line.startswith("##")]
    assert headings == ["## Summary at input 1x3x8x8", "## Groups", "## Layers"]


def test_the_dict_is_json(measured):
    data = json.loads(json.dumps(measured.to_dict()))
    assert data == measured.to_dict()
    assert set(data) == {*Report.__dataclass_fields__, "macs_kept", "params_kept"}
    assert data["macs_kept"] == pytest.approx(93 / 248)
    assert data["before"]["latency"]["repeats"] == 5
    assert data["groups"] == [{"name": "0", "kind": "channel", "size": 8, "kept": 3}]
    assert data["layers"][0]["after"] == [3, 3, 3, 3]


def test_html_is_written_in_one_step(measured, tmp_path):
    path = tmp_path / "report.html"
    assert measured.to_html(path) == path
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    assert "<h2>Groups</h2>" in text
    assert "-&gt;" in text
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_html_needs_a_directory(measured, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        measured.to_html(tmp_path / "missing" / "report.html")


def test_pictures_are_drawn(measured, tmp_path):
    pytest.importorskip("matplotlib")
    path = measured.plot(tmp_path / "widths.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert measured.plot(tmp_path / "widths.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("widths", "name", "message"),
    [
        ([("a", 2, 1)], "widths.txt", "must end in .png, .svg or .pdf"),
        ([], "widths.png", "no widths to draw"),
    ],
)
def test_pictures_need_widths_and_a_known_format(tmp_path, widths, name, message):
    with pytest.raises(ConfigError, match=message):
        plot_widths(widths, "title", tmp_path / name)


def test_the_missing_extra_is_named(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'fxprune\[plot\]'"):
        measured.plot(tmp_path / "widths.png")


def test_both_arguments_must_be_modules():
    with pytest.raises(ConfigError, match="'after' argument of report must be a torch.nn.Module"):
        report(net(), "net", IMAGE)


def test_inputs_must_fit():
    with pytest.raises(InputError, match="does not run on the example inputs"):
        report(net(), net(), torch.zeros(1, 4, 8, 8))


def test_models_without_macs_have_no_share(no_export):
    found = report(nn.ReLU(), nn.ReLU(), IMAGE)
    assert found.to_dict()["macs_kept"] is found.to_dict()["params_kept"] is None
    assert "MACs kept n/a" in str(found)
