"""Commands: inspect, prune, compare and demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import commands, main, models
from fxprune.export import export_onnx
from fxprune.serialize import load

SHAPE = ["--input", "1,3,8,8"]
SMALL = "fxprune_test_nets:small"


# -- inspect ---------------------------------------------------------------------------------------
def test_inspect_prints_tables(run):
    status, out, err = run("inspect", SMALL, *SHAPE)
    assert (status, err) == (0, "")
    assert "MACs at input 1x3x8x8" in out
    assert "Frozen axes" in out


def test_inspect_prints_json(run_json):
    data = run_json("inspect", SMALL, *SHAPE)
    assert data["model"] == SMALL
    assert data["macs"] == 36 * (8 * 27 + 4 * 8)
    assert data["input_shapes"] == [[1, 3, 8, 8]]
    assert {"params", "prunable_params", "prunable_macs", "groups", "frozen", "modules"} < set(data)


def test_inspect_draws_the_dependency_graph(run, run_json, here):
    pytest.importorskip("matplotlib")
    status, out, _ = run("inspect", SMALL, *SHAPE, "--svg", "graph.svg")
    assert status == 0
    assert out.endswith("Written: graph.svg\n")
    assert ">0 (8)</text>" in (here / "graph.svg").read_text()
    assert run_json("inspect", SMALL, *SHAPE, "--svg", "other.svg")["svg"] == "other.svg"


def test_inspect_needs_matplotlib_to_draw(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = run("inspect", SMALL, *SHAPE, "--svg", "graph.svg")
    assert (status, out) == (2, "")
    assert "pip install 'fxprune[plot]'" in err


def test_inspect_refuses_other_formats_before_it_works(run, monkeypatch):
    monkeypatch.setattr(commands, "build_model", None)
    status, _, err = run("inspect", SMALL, "--svg", "graph.gif")
    assert status == 2
    assert "must end in .png, .svg or .pdf" in err


def test_inspect_ignores_names_and_patterns(run_json):
    assert run_json("inspect", SMALL, *SHAPE, "--ignore", "0")["groups"] == []
    assert run_json("inspect", SMALL, *SHAPE, "--ignore", r"re:^0\.")["groups"] == []


def test_inputs_may_be_several_and_of_other_types(run_json):
    data = run_json(
        "inspect", "fxprune_test_nets:two_inputs", "--input", "2,7:int64", "--input", "2x7x1"
    )
    assert data["input_shapes"] == [[2, 7], [2, 7, 1]]


def test_the_module_runs_as_a_program(here):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(fxprune.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "fxprune", "inspect", "resnet18", "--json"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    data = json.loads(done.stdout)
    assert (data["params"], data["macs"]) == (11_689_512, 1_814_073_344)


# -- prune -----------------------------------------------------------------------------------------
def test_prune_writes_a_file_that_loads(run_json, here):
    data = run_json("prune", SMALL, *SHAPE, "--macs", "0.5", "--out", "net.pt", "--no-latency")
    assert data["selection"] == {
        "resource": "macs",
        "target": 0.5,
        "reached": 0.5,
        "met": True,
    }
    assert data["verification"]["passed"] is True
    assert data["report"]["after"]["latency"] is None
    assert data["out"] == "net.pt"
    compact = load(here / "net.pt", models.build_model(SMALL))
    assert compact.get_submodule("0").out_channels == 4


def test_prune_writes_onnx_and_tells_what_it_did(run, here):
    status, out, _ = run("prune", SMALL, *SHAPE, "--params", "0.6", "--out", "net.onnx")
    assert status == 0
    assert (here / "net.onnx").stat().st_size > 0
    assert "Budget: params: asked 60.00% of the dense model" in out
    assert "largest relative difference" in out
    assert "(1 thread, batch 1, median of 30)" in out
    assert out.endswith("Written: net.onnx\n")


def test_prune_takes_importance_seed_and_rounding(run_json):
    options = ["--importance", "random", "--seed", "3", "--round-to", "4", "--no-latency"]
    data = run_json("prune", SMALL, *SHAPE, "--macs", "0.5", *options)
    assert data["report"]["groups"] == [{"name": "0", "kind": "channel", "size": 8, "kept": 4}]
    assert data["out"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--macs", "0.5", "--out", "net.h5"], "takes a file ending in .pt or .onnx"),
        (["--macs", "0.5", "--out", "missing/net.pt"], "directory of --out does not exist"),
        (["--macs", "2"], "must be a share in"),
        (["--macs", "0.5", "--importance", "beauty"], "must be one of"),
        (["--macs", "0.5", "--ignore", "re:("], "no regular expression"),
        (["--macs", "0.5", "--ignore", "nothing"], "matches no module or parameter"),
        (["--macs", "0.5", "--input", "1,3,8,y"], "--input option takes sizes"),
        (["--macs", "0.5", "--input", "1,3:floaty"], "--input option takes sizes"),
    ],
)
def test_wrong_options_are_told_without_a_traceback(run, options, message):
    status, out, err = run("prune", SMALL, *options)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [["prune", "resnet18"], ["dance"], [], ["inspect"]])
def test_arguments_that_cannot_be_parsed(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: fxprune" in capsys.readouterr().err


# -- compare ---------------------------------------------------------------------------------------
def test_compare_a_file_with_a_model(run_json, here):
    wide = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
    export_onnx(wide, here / "wide.onnx", torch.zeros(2, 3, 8, 8))
    data = run_json("compare", "wide.onnx", SMALL)
    assert data["input_shapes"] == [[1, 3, 8, 8]]
    first, second = data["models"]
    assert (first["name"], second["name"]) == ("wide.onnx", SMALL)
    assert first["macs"] == 2 * second["macs"] == 36 * (16 * 27 + 4 * 16)
    assert first["params"] == sum(p.numel() for p in wide.parameters())
    assert first["file_bytes"] == (here / "wide.onnx").stat().st_size
    assert second["latency"]["median_ms"] > 0


def test_compare_prints_a_table(run):
    status, out, _ = run("compare", SMALL, SMALL, *SHAPE, "--no-latency")
    assert status == 0
    assert out.startswith("Input 1x3x8x8\n")
    assert "100.0 %" in out
    assert "latency" not in out


def test_compare_guesses_the_input_of_a_model(run_json):
    data = run_json("compare", SMALL, SMALL, "--no-latency")
    assert data["input_shapes"] == [[1, 3, 224, 224]]
    assert data["models"][0]["latency"] is None


def test_compare_needs_files_that_exist(run):
    status, _, err = run("compare", "a.onnx", "b.onnx")
    assert status == 2
    assert "not an ONNX model that can be read" in err


def test_the_table_names_what_was_not_counted():
    cost = commands.OnnxCost(0, 0, 10, ("Einsum",))
    text = commands._comparison(["a", "b"], [(1,)], [cost, cost], [None, None])
    assert "not counted among the MACs of b: Einsum" in text


# -- demo ------------------------------------------------------------------------------------------
def test_demo_passes_its_options_on(run, monkeypatch):
    seen = {}

    class Found:
        def __init__(self, out, **options):
            seen.update(options, out=out)

        def __str__(self):
            return "tables"

        def to_dict(self):
            return {"accuracy": 1}

    monkeypatch.setattr(commands, "run_demo", Found)
    assert run("demo", "--quick", "--out", "there") == (0, "tables\n", "")
    assert seen == {"out": "there", "epochs": 12, "macs": 0.5, "seed": 0, "quick": True}
    assert run("demo", "--json")[1] == '{"accuracy": 1}\n'
    assert seen["out"] == "demo"
