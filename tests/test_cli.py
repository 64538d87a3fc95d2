from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import fxprune
from fxprune.cli import commands, entry, main, models, train
from fxprune.errors import ConfigError, LoadError
from fxprune.export import export_onnx
from fxprune.serialize import load

FACTORY = """
from torch import nn
from fxprune_test_helper import WIDTH

def small():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, 4, 1))

def classifier():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )

def two_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(5, 6), nn.Linear(6, 2)
        def forward(self, x, scale):
            return self.out(self.words(x)) * scale
    return Net()

def broken():
    raise RuntimeError("no weights today")

NOT_A_MODEL = dict
"""
SHAPE = ["--input", "1,3,8,8"]
SMALL = "fxprune_test_nets:small"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current directory with two modules in it; nothing of them stays imported."""
    (tmp_path / "fxprune_test_nets.py").write_text(FACTORY)
    (tmp_path / "fxprune_test_helper.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("fxprune_test_")]:
        del sys.modules[name]


@pytest.fixture
def run(capsys):
    """Run a command; return its status, stdout and stderr."""

    def run(*arguments):
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def run_json(run):
    """Run a command with --json; return the one document it prints."""

    def run_json(*arguments):
        status, out, _ = run(*arguments, "--json")
        assert status == 0
        assert out.count("\n") == 1
        return json.loads(out)

    return run_json


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


# -- train -----------------------------------------------------------------------------------------
CLASSIFIER = "fxprune_test_nets:classifier"
DIGITS = ["--data", "digits", "--size", "8"]


def test_train_ends_with_one_line_of_json(run, here):
    options = ["--macs", "0.5", "--epochs", "1", "--out", "made", "--json"]
    status, out, _ = run("train", CLASSIFIER, *DIGITS, *options)
    assert status == 0
    data = json.loads(out.splitlines()[-1])
    names = {"dense", "compact", "target", "settled", "nu", "max_abs_error", "seconds"}
    assert set(data) == names | {"epoch_seconds", "onnx"}
    for network in ("dense", "compact"):
        assert set(data[network]) == {"macs", "params", "accuracy"}
        assert 0 <= data[network]["accuracy"] <= 1
    assert data["target"] == {"macs": 0.5}
    assert data["compact"]["macs"] / data["dense"]["macs"] == pytest.approx(0.5, rel=0.01)
    assert data["onnx"] == str(Path("made") / "compact.onnx")
    assert (here / data["onnx"]).stat().st_size > 0
    compact = load(here / "made" / "compact.pt", models.build_model(CLASSIFIER))
    assert sum(p.numel() for p in compact.parameters()) == data["compact"]["params"]

    status, out, err = run("train", CLASSIFIER, *DIGITS, *options)
    assert (status, out) == (2, "")
    assert "already holds a training run" in err
    status, out, _ = run("train", CLASSIFIER, *DIGITS, *options, "--resume")
    assert status == 0
    assert json.loads(out)["compact"] == data["compact"]


def test_train_takes_its_options_and_prints_tables(run, here, monkeypatch):
    seen = {}
    plain = train.run_training

    def spy(model, data, settings, out, resume):
        seen.update(settings=settings, data=data)
        return plain(model, data, settings, out, resume=resume)

    monkeypatch.setattr(train, "run_training", spy)
    status, out, _ = run(
        *("train", CLASSIFIER, *DIGITS, "--params", "0.6", "--epochs", "1", "--out", "made"),
        *("--no-dense", "--round-to", "2", "--ignore", r"re:^0\.", "--seed", "3", "--lr", "0.01"),
        *("--optimizer", "adamw", "--schedule", "cosine", "--batch-size", "32", "--clip", "1"),
        *("--weight-decay", "0.1", "--held-back", "0.1", "--accumulate", "2", "--amp"),
        *("--device", "cpu", "--every", "4", "--workers", "0", "--momentum", "0.8"),
    )
    assert status == 0
    assert "not trained" in out
    assert "Budget: params: asked 60.00%" in out
    settings = seen["settings"]
    assert (settings.target, settings.epochs, settings.dense) == (("params", 0.6), 1, False)
    assert (settings.round_to, settings.seed, settings.rate) == (2, 3, 0.01)
    assert (settings.optimizer, settings.schedule, settings.clip) == ("adamw", "cosine", 1)
    assert (settings.batch_size, settings.accumulate, settings.amp) == (32, 2, True)
    assert (settings.weight_decay, settings.held_back, settings.every) == (0.1, 0.1, 4)
    assert (settings.device, settings.workers, settings.momentum) == ("cpu", 0, 0.8)
    assert seen["data"].train_images.shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "takes digits, glyphs, or a folder"),
        (["--data", "."], "two classes"),
        ([*DIGITS, "--macs", "2"], "must be a share in"),
        ([*DIGITS, "--macs", "0.0001"], "No keep-mask reaches macs=0.0001"),
        ([*DIGITS, "--epochs", "0"], "'epochs' argument must be an integer >= 1"),
        ([*DIGITS, "--device", "abacus"], "no device 'abacus'"),
        ([*DIGITS, "--ignore", "nothing"], "matches no module or parameter"),
    ],
)
def test_train_refuses_before_it_trains(run, here, options, message):
    given = ["--macs", "0.5", "--epochs", "1", "--out", "made"]
    status, out, err = run("train", CLASSIFIER, *given, *options)
    assert (status, out) == (2, "")
    assert message in err
    assert "step" not in err
    assert not (here / "made").exists()


def test_train_wants_as_many_scores_as_classes(run):
    given = ["--data", "glyphs", "--macs", "0.5", "--epochs", "1", "--out", "made"]
    status, _, err = run("train", CLASSIFIER, *given)
    assert status == 2
    assert "returns 10 scores, but the data has 62 classes" in err


def test_of_several_processes_one_prints(run, monkeypatch):
    monkeypatch.setattr(commands, "inspect", lambda args: None)
    assert run("inspect", "net") == (0, "", "")


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


# -- models ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("resnet81", "no 'resnet81' in torchvision", "resnet18"),
        ("zzzzzzzz", "no 'zzzzzzzz' in torchvision", "MODEL is a torchvision name"),
        ("fxprune_test_nets:smal", "no 'smal' in fxprune_test_nets", "small"),
        ("fxprune_test_absent:net", "no Python module 'fxprune_test_absent'", "install it"),
        ("fxprune_test_absent.sub:net", "no Python module", "install it"),
        (":net", "no complete name", "factory"),
        ("fxprune_test_nets:", "no complete name", "factory"),
        ("fxprune_test_nets:broken", "cannot be built", "without arguments"),
        ("fxprune_test_nets:NOT_A_MODEL", "not a torch.nn.Module", "without arguments"),
    ],
)
def test_models_that_cannot_be_had(name, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        models.build_model(name)
    assert hint in caught.value.hint


def test_modules_that_fail_to_import_say_why(here):
    (here / "fxprune_test_missing.py").write_text("import fxprune_test_nowhere\n")
    (here / "fxprune_test_failing.py").write_text("1 / 0\n")
    for name, seen in (("missing", "fxprune_test_nowhere"), ("failing", "ZeroDivisionError")):
        with pytest.raises(ConfigError, match="cannot be imported") as caught:
            models.build_model(f"fxprune_test_{name}:net")
        assert seen in caught.value.seen


def test_packages_of_the_current_directory_are_found(here):
    (here / "fxprune_test_package").mkdir()
    (here / "fxprune_test_package" / "nets.py").write_text(
        "from torch import nn\nclass Nets:\n    line = staticmethod(lambda: nn.Linear(2, 1))\n"
    )
    finders = list(sys.meta_path)
    model = models.build_model("fxprune_test_package.nets:Nets.line")
    assert isinstance(model, nn.Linear)
    assert not model.training
    assert sys.meta_path == finders


def test_torchvision_names_build():
    assert type(models.build_model("squeezenet1_1")).__name__ == "SqueezeNet"
    assert models.build_model("resnet18", num_classes=7).fc.out_features == 7


def test_building_a_detector_downloads_nothing(monkeypatch):
    def download(*args, **kwargs):
        pytest.fail("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    model = models.build_model("ssdlite320_mobilenet_v3_large")
    assert type(model).__name__ == "SSD"


def test_timm_names_build(monkeypatch):
    timm = ModuleType("timm")
    timm.list_models = lambda: ["tiny_net"]
    timm.create_model = lambda name, pretrained, num_classes=1: nn.Linear(
        2, 3 if pretrained else num_classes
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert models.build_model("timm:tiny_net").out_features == 1
    assert models.build_model("timm:tiny_net", num_classes=5).out_features == 5
    assert models.build_model("timm:tiny_net.a1", "DEFAULT").out_features == 3
    with pytest.raises(ConfigError, match="no 'tiny_nut' in timm"):
        models.build_model("timm:tiny_nut")
    with pytest.raises(ConfigError, match="neither a file nor known by name"):
        models.build_model("timm:tiny_net", "a1_in1k")


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'fxprune\[timm\]'"):
        models.build_model("timm:resnet18")


def test_weights_come_from_a_file(here):
    state = models.build_model(SMALL).state_dict()
    state["0.bias"] = torch.arange(8.0)
    torch.save(state, here / "weights.pt")
    model = models.build_model(SMALL, "weights.pt")
    assert torch.equal(model.get_parameter("0.bias"), torch.arange(8.0))


def test_weights_must_fit(here):
    torch.save({"other": torch.zeros(1)}, here / "weights.pt")
    with pytest.raises(LoadError, match="cannot be loaded into the model"):
        models.build_model(SMALL, "weights.pt")
    with pytest.raises(ConfigError, match="neither a file nor known by name"):
        models.build_model(SMALL, "absent.pt")
    with pytest.raises(ConfigError, match="cannot be built") as caught:
        models.build_model("resnet18", "NO_SUCH_WEIGHTS")
    assert "--weights" in caught.value.hint


# -- the program itself ----------------------------------------------------------------------------
def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fxprune {fxprune.__version__}\n"


def test_notes_are_printed(run, monkeypatch):
    def fail(args):
        error = ConfigError("What is wrong.")
        error.add_note("And one thing more.")
        raise error

    monkeypatch.setattr(commands, "inspect", fail)
    assert run("inspect", "net") == (2, "", "What is wrong.\nAnd one thing more.\n")


def test_debug_raises():
    with pytest.raises(ConfigError, match="no 'resnet81'"):
        main(["inspect", "resnet81", "--debug"])


def test_warnings_are_silent_without_debug(run, monkeypatch):
    def warn(args):
        import warnings

        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return commands.Answer("done", {})

    monkeypatch.setattr(commands, "inspect", warn)
    assert run("inspect", "net") == (0, "done\n", "")
    with pytest.raises(DeprecationWarning):
        main(["inspect", "net", "--debug"])


def test_an_interrupt_is_no_traceback(run, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "inspect", interrupt)
    assert run("inspect", "net") == (130, "", "Interrupted.\n")


def test_a_closed_pipe_is_no_error(here):
    """As in ``fxprune inspect MODEL | head -1``."""
    program = f"import sys; from fxprune.cli import main; sys.exit(main(['inspect', '{SMALL}']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(fxprune.__file__).parents[1])},
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_has_json():
    parser = entry._parser()
    choices = parser._subparsers._group_actions[0].choices
    assert set(choices) >= {"demo", "inspect", "prune", "train", "compare"}
    for command in choices.values():
        assert "--json" in command.format_help()
