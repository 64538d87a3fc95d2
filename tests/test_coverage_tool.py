"""tools/coverage.py: its processes and limits, its stages on tiny models, its rows and its page."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from fxprune.api import auto_gate
from fxprune.errors import ConfigError, ExportError, VerificationError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        names = ("processes", "subjects", "doubled", "gating", "peer", "page", "rows", "zoo")
        parts = {name: importlib.import_module(f"coverage_.{name}") for name in names}
        yield SimpleNamespace(main=importlib.import_module("coverage"), **parts)


@pytest.fixture
def tiny(tool):
    """A subject that builds a net of a few channels: with a norm, and with a frozen output."""

    @dataclasses.dataclass(frozen=True)
    class Tiny(tool.subjects.Subject):
        def build(self):
            layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
            return nn.Sequential(*layers).eval()

    return Tiny("tiny", shapes=((2, 3, 8, 8),))


def _run(stages) -> dict:
    return {name: dict(run()) for name, run in stages}


# -- processes
SAYS = "import json\nprint('noise')\nsay = lambda **m: print(json.dumps(m), flush=True)\n"
ENDS = SAYS + "say(begins='build'); say(ends='build', found={'params': 3}); say(begins='gate')\n"


@pytest.mark.parametrize(
    ("script", "failed", "reason"),
    [
        (ENDS + "say(ends='gate', found={})", "", ""),
        (ENDS + "say(fails='gate', reason='a reason')", "gate", "a reason"),
        (ENDS + "import os; os.kill(os.getpid(), 11)", "gate", "ended by SIGSEGV"),
        (ENDS + "import os; os._exit(3)", "gate", "ended with status 3"),
        (ENDS + "import os; os._exit(0)", "gate", "ended with status 0"),
        (ENDS + "import time; time.sleep(60)", "gate", "not done after 2 s"),
    ],
)
def test_what_ended_is_known_however_the_process_ends(tool, script, failed, reason):
    outcome = tool.processes.run_worker([sys.executable, "-c", script], 2)
    assert outcome.failed == failed
    assert reason in outcome.reason
    assert bool(reason) == bool(outcome.reason)
    assert outcome.found["build"] == {"params": 3}


def test_a_process_that_does_not_start_is_told(tool):
    outcome = tool.processes.run_worker([sys.executable, "-c", "import missing_module"], 30)
    assert outcome.failed == "start"
    assert "missing_module" in outcome.reason


def test_memory_is_limited_and_its_lack_named(tool):
    script = (
        "import sys; from coverage_.processes import limit_memory, report_stages\n"
        "limit_memory(0.25)\n"
        "report_stages(iter([('gate', lambda: bytearray(1 << 30))]), sys.stdout)"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT / 'tools'}:{ROOT}")
        outcome = tool.processes.run_worker([sys.executable, "-c", script], 60)
    assert (outcome.failed, outcome.reason) == ("gate", "out of the memory it may have")


def test_errors_are_one_line_without_places_of_this_machine(tool):
    error = ConfigError("What.", where="/home/me/lib/site-packages/torch/nn.py:3", hint="do so")
    assert tool.processes.one_line(error) == "What; torch/nn.py:3"
    assert tool.processes.one_line(ValueError("a\n b")) == "ValueError: a b"


# -- subjects
def test_every_model_of_torchvision_has_inputs(tool):
    names = tool.subjects.all_names(["timm:a"])
    assert (len(names), names[-1]) == (122, "timm:a")
    subjects = [tool.subjects.subject(name) for name in names[:-1]]
    assert [one.name for one in subjects if one.listed] == [
        name for name in names if any(part in name for part in ("rcnn", "retina", "fcos", "ssd"))
    ]
    assert all(
        len(shape) == (3 if one.listed else len(one.shapes[0]))
        for one in subjects
        for shape in one.shapes
    )
    with pytest.raises(ConfigError, match="no 'resnet19' in torchvision"):
        tool.subjects.subject("resnet19")


def test_every_family_of_timm_has_a_model(tool):
    timm = pytest.importorskip("timm")
    assert tool.zoo.missing_families() == []
    for family, name in tool.zoo.TIMM.items():
        assert name in timm.list_models(module=family)


def test_models_of_fixed_size_are_built_small(tool):
    pytest.importorskip("timm")
    subject = tool.subjects.subject("timm:vit_tiny_patch16_224")
    assert (subject.options, subject.shapes) == ({"img_size": 64}, ((2, 3, 64, 64),))
    subject.build()(*subject.inputs())
    assert tool.subjects.subject("timm:test_resnet").options == {}


def test_models_are_small_random_and_the_same_every_time(tool):
    subject = tool.subjects.subject("squeezenet1_1")
    before = torch.get_rng_state(), nn.init.normal_
    models = [subject.build() for _ in range(2)]
    for model in models:
        tool.subjects.randomise(model, subject.inputs())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert nn.init.normal_ is before[1]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.unique().numel() > 1 for tensor in first.values())


def test_nothing_keeps_a_default(tool, tiny):
    model = tiny.build()
    tool.subjects.randomise(model, tiny.inputs())
    norm = model[1]
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert tensor.unique().numel() == 8
    assert 0.3 < float(model[:2](*tiny.inputs()).detach().std()) < 3


# -- fxprune's stages
def test_stages_find_what_there_is(tool, tiny):
    found = _run(tool.gating.Gating(tiny, onnx=False).stages())
    assert list(found) == ["build", "gate", "equal"]
    assert found["build"]["params"] == 276
    gate, equal = found["gate"], found["equal"]
    assert (gate["groups"], gate["units"], gate["prunable_macs"]) == (1, 8, 1.0)
    assert gate["prunable_params"] == pytest.approx(1 - 4 / 276)
    assert gate["half_params"] == pytest.approx(140 / 276)
    assert gate["rest"] == [(4 / 276, "it is an output of the model")]
    assert equal["masks"] == 2
    assert max(equal["open"], equal["masked"]) < 1e-12
    json.dumps(found)


def test_one_analysis_does_where_no_onnx_is_written(tool, tiny, monkeypatch):
    kinds = []

    def counting(model, inputs):
        kinds.append(next(model.parameters()).dtype)
        return auto_gate(model, inputs)

    monkeypatch.setattr(tool.gating, "auto_gate", counting)
    _run(tool.gating.Gating(tiny, onnx=False).stages())
    assert kinds == [torch.float64]
    monkeypatch.setattr(
        tool.gating, "export_onnx", lambda *_, **__: SimpleNamespace(max_rel_error=0)
    )
    _run(tool.gating.Gating(tiny, onnx=True).stages())
    assert kinds == [torch.float64, torch.float32, torch.float64]


def test_a_wrong_compact_model_is_found(tool, tiny, monkeypatch):
    def gate_wrongly(model, inputs):
        gated = auto_gate(model, inputs)
        compact = gated.compact

        def perturbed():
            made = compact()
            with torch.no_grad():
                next(made.parameters()).view(-1)[0] += 1e-3
            return made

        gated.compact = perturbed
        return gated

    monkeypatch.setattr(tool.gating, "auto_gate", gate_wrongly)
    with pytest.raises(VerificationError, match="do not compute the same"):
        _run(tool.gating.Gating(tiny, onnx=False).stages())


def test_masks_that_reach_nothing_prove_nothing(tool, tiny):
    gated = auto_gate(tiny.build(), tiny.inputs())
    whole = tool.gating._outputs(gated, tiny.inputs(), gated)
    with pytest.raises(VerificationError, match="do not change the output"):
        tool.gating._check_change(whole, whole, gated)


@pytest.mark.parametrize(
    ("cause", "answer"),
    [(None, "yes"), (ValueError("no"), "no"), (VerificationError("no"), "differs")],
)
def test_onnx_is_answered(tool, tiny, monkeypatch, cause, answer):
    def export(*_, **__):
        if cause is not None:
            raise ExportError("It failed.") from cause
        return SimpleNamespace(max_rel_error=0.0)

    monkeypatch.setattr(tool.gating, "export_onnx", export)
    found = _run(tool.gating.Gating(tiny, onnx=True).stages())
    assert [found[stage]["answer"] for stage in ("dense onnx", "compact onnx")] == [answer] * 2


def test_a_fixed_batch_size_is_told(tool, tiny, monkeypatch):
    def export(*_, dynamic_batch, **__):
        if dynamic_batch:
            raise ExportError("The model fixes its batch size.")
        return SimpleNamespace(max_rel_error=0.0)

    monkeypatch.setattr(tool.gating, "export_onnx", export)
    found = _run(tool.gating.Gating(tiny, onnx=True).stages())
    assert found["dense onnx"]["answer"] == "one batch size"


def test_the_file_is_of_the_model_in_single_precision(tool, tiny, monkeypatch):
    """A model that is run in double precision is turned back outside of what doubles float32."""
    seen = []

    def export(model, *_, **__):
        seen.append(next(model.parameters()).dtype)
        return SimpleNamespace(max_rel_error=0.0)

    monkeypatch.setattr(tool.gating, "export_onnx", export)
    monkeypatch.setattr(tool.doubled, "_stays_in_double", lambda *_: False)
    _run(tool.gating.Gating(tiny, onnx=True).stages())
    assert seen == [torch.float32] * 2


def test_onnx_says_nothing_where_float32_does_not(tool, tiny, monkeypatch):
    def export(*_, **__):
        raise ExportError("It failed.") from VerificationError("no")

    monkeypatch.setattr(tool.gating, "export_onnx", export)
    monkeypatch.setattr(tool.gating, "_SHAKY", 1e-9)
    found = _run(tool.gating.Gating(tiny, onnx=True).stages())
    assert found["dense onnx"]["answer"] == "rounding"


# -- the peer's stages
def test_torch_pruning_is_asked_the_same(tool, tiny):
    pytest.importorskip("torch_pruning")
    found = _run(tool.peer.Peer(tiny).stages())
    assert list(found) == ["build", "graph", "cut", "run"]
    assert found["cut"]["half_params"] < 0.6


def test_a_peer_that_is_missing_is_named(tool, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match="not installed"):
        tool.peer.Peer(tiny)


# -- the sweep
FOUND = {
    "build": {"params": 276, "gib": 0.5, "shapes": [[2, 3, 8, 8]]},
    "gate": {
        "captured": "symbolic tracing",
        "groups": 1,
        "units": 8,
        "prunable_params": 0.98,
        "prunable_macs": 1.0,
        "half_params": 0.5,
        "half_macs": 0.5,
        "rest": [[0.02, "it is an output of the model"]],
        "seconds": {"wall": 1.0, "cpu": 0.5},
        "added_gib": 0.75,
    },
    "equal": {"open": 0.0, "masked": 2e-16, "masks": 2},
}
ONNX = {"dense onnx": {"answer": "yes"}, "compact onnx": {"answer": "yes"}}


@pytest.fixture
def sweep(tool, monkeypatch, tmp_path):
    """Run the sweep over made-up answers; `tried` lists what was asked."""
    tried = []

    def measure(name, kind, *, onnx, gib, seconds):
        tried.append((name, kind))
        failed = "equal" if name == "resnet34" and kind == "fxprune" else ""
        found = FOUND | (ONNX if onnx else {})
        return tool.rows.Row(
            name,
            kind,
            failed,
            failed and "a, reason",
            1.5,
            "2026-01-02",
            json.dumps({k: v for k, v in found.items() if not failed or k in ("build", "gate")}),
        )

    monkeypatch.setattr(tool.main, "measure", measure)
    files = ["--rows", str(tmp_path / "rows.csv"), "--markdown", str(tmp_path / "page.md")]

    def run(*arguments):
        tried.clear()
        return tool.main.main([*files, *arguments]), sorted(tried)

    return run


def test_sweeps_resume_and_end_with_the_failures_by_name(sweep, tmp_path, capsys):
    ours = [(name, "fxprune") for name in ("resnet18", "resnet34")]
    asked = ("--only", "resnet18,resnet34")
    both = [("quantized_resnet18", "fxprune"), *ours]
    assert sweep(*asked, "--no-onnx") == (1, both)
    assert "fxprune: 2 of 3\n  resnet34: equal: a, reason" in capsys.readouterr().out
    assert sweep(*asked, "--no-onnx") == (1, [])
    assert sweep(*asked) == (1, both[:2])  # those without ONNX; what failed stays
    assert sweep(*asked, "--again") == (1, both[2:])
    assert sweep(*asked, "--peers")[1] == [(name, "torch-pruning") for name, _ in both]
    assert sweep("--only", "resnet18")[0] == 0
    text = (tmp_path / "page.md").read_text()
    assert "**fxprune: 2 of 2** gated, compacted and equal; of 2 whose dense" in text
    assert "in 2 of them at least 80% of the parameters are prunable" in text


def test_page_tells_every_row(sweep, tmp_path):
    sweep("--only", "resnet34,alexnet,vgg11_bn")
    text = (tmp_path / "page.md").read_text()
    cells = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    }
    assert cells["alexnet"] == ["2.0 %: it is an output of the model"]
    assert cells["resnet34"] == ["equal", "a, reason"]
    rows = [line for line in text.splitlines() if "symbolic tracing" in line]
    assert len(rows) == 3
    assert "| 2e-16 " in rows[0]
    assert "| 1.5x " in rows[0]
    assert "FAILED: equal" in next(line for line in rows if "resnet34" in line)
    assert "fxprune: 1 of 3." in text


def test_models_can_be_listed(tool, capsys):
    assert isinstance(tool.main, ModuleType)
    assert tool.main.main(["--only", "vit_h", "--list", "--rows", "none.csv"]) == 0
    assert capsys.readouterr().out == "vit_h_14 \n"
    assert tool.main.main(["--zoo", "timm", "--only", "vgg", "--list", "--rows", "none.csv"]) == 0
    assert capsys.readouterr().out == "timm:vgg11 \n"


class WritesFloat(nn.Module):
    """Makes float32 in its code: it does not run in float64."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.b(self.a(x.float() / 3) + torch.arange(6, dtype=torch.float32) / 7)


def test_float32_in_the_code_means_float64_where_models_are_compared(tool):
    model, x = WritesFloat().double().eval(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="dtype|type"):
        model(x)
    with tool.doubled.in_double(model, (x,)):
        assert model(x).dtype is torch.float64
        gated = auto_gate(model, x)
        torch.testing.assert_close(gated(x), model(x), rtol=1e-12, atol=0)
    assert torch.get_default_dtype() is torch.float32
    assert x.float().dtype is torch.float32
    plain = nn.Conv2d(3, 8, 3).double()
    with tool.doubled.in_double(plain, (x,)):
        assert x.float().dtype is torch.float32


def test_float32_on_the_way_is_float64_too(tool):
    class Rounds(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).float().to(x.dtype)

    model, x = Rounds(3, 8, 3).double(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    exact = nn.functional.conv2d(x, model.weight, model.bias)
    assert not torch.equal(model(x), exact)
    with tool.doubled.in_double(model, (x,)):
        assert torch.equal(model(x), exact)
