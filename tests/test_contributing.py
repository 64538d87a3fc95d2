"""CONTRIBUTING.md shows code that runs: its blocks are regions of tested files, and what they do is checked."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from examples.add_pass_example import DropIdentity
from examples.add_rule_example import ROWS, diagonal, rule
from gate_checks import assert_close, assert_equal_to_compact, random_keep, run
from torch import nn

from fxprune.analysis.build import Analysis
from fxprune.analysis.plan import Plan
from fxprune.api import auto_gate
from fxprune.assemble import assemble
from fxprune.capture import capture
from fxprune.gated import GatedModule
from fxprune.passes import Pipeline
from fxprune.passes.base import fingerprint
from fxprune.rules import Registry, registry
from fxprune.settings import Settings

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"<!-- (\S+): (\w+) -->\n```python\n(.*?)```", re.S)


def region(file: str, name: str) -> str:
    """Return what stands between ``# region name`` and ``# endregion``."""
    text = (ROOT / file).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^# region {name}\n(.*?)\n*^# endregion$", text, re.S | re.M)
    return found + "\n"


@pytest.mark.parametrize(("file", "name", "code"), BLOCK.findall(TEXT), ids=lambda x: str(x)[-30:])
def test_code_blocks_are_regions_of_tested_files(
    file: str, name: str, code: str, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--update-golden"):
        path = ROOT / "CONTRIBUTING.md"
        head = f"<!-- {file}: {name} -->\n```python\n"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(f"{head}{code}```", f"{head}{region(file, name)}```"), "utf-8")
    else:
        assert code == region(file, name), "run pytest --update-golden if the example is right"


def test_all_regions_are_shown() -> None:
    shown = {(file, name) for file, name, _ in BLOCK.findall(TEXT)}
    marked = {
        (str(path.relative_to(ROOT)), name)
        for path in (ROOT / "tests" / "examples").glob("*.py")
        for name in re.findall(r"^# region (\w+)$", path.read_text(encoding="utf-8"), re.M)
    }
    assert shown == marked
    assert TEXT.count("```python") == len(shown)


def test_links_and_commands_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert [link for link in links if not (ROOT / link).exists()] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", TEXT, re.M)
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)] == []
    paths = re.findall(r"pytest (tests/\S+?)[ `]", TEXT)
    assert [path for path in paths if not (ROOT / path).exists()] == []


# -- the rule --------------------------------------------------------------------------------------------------


def gate_with(rules: Registry, number: int) -> tuple[GatedModule, Plan, nn.Module, torch.Tensor]:
    net, x = ROWS[number].build()
    found = capture(copy.deepcopy(net), ((x,), {}))
    plan = Analysis(found.root, found.graphs, rules).run((x,), {}, lambda name: None)
    return assemble(found, plan, Settings.of(((x,), {}), [], 1)), plan, net, x


def own_rules() -> Registry:
    rules = registry.child()
    rules.register("aten::diagonal")(diagonal)
    return rules


def test_the_rule_makes_channels_prunable_that_were_frozen() -> None:
    net, x = ROWS[0].build()
    before = {str(f.member): f.reason for f in auto_gate(net, x).frozen}
    assert "aten::diagonal, for which there is no rule" in before["make.weight[0]"]
    gated, plan, net, x = gate_with(own_rules(), 0)
    assert [str(group.members[0]) for group in plan.groups] == ["make.weight[0]"]
    assert_close(run(gated, x), run(net, x))
    for seed in range(3):
        gated.set_keep(random_keep(gated, 0.5, seed))
        assert_equal_to_compact(gated, x)


def test_the_rule_freezes_what_it_says() -> None:
    gated, plan, net, x = gate_with(own_rules(), 1)
    reasons = {str(f.member): f.reason for f in plan.frozen}
    assert ROWS[1].reason in reasons["make.weight[0]"]
    assert plan.groups == ()
    assert_close(run(gated, x), run(net, x))


def test_the_example_leaves_the_global_registry_alone() -> None:
    assert callable(rule)
    assert registry.find("aten::diagonal") is None


# -- the pass --------------------------------------------------------------------------------------------------


def traced() -> torch.fx.GraphModule:
    net = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.ReLU(), nn.Identity(), nn.Identity())
    return torch.fx.symbolic_trace(net.double().eval())


def test_the_pass_does_what_it_says() -> None:
    gm, x = traced(), torch.rand(3, 4, dtype=torch.float64)
    expected = run(gm, x)
    result = DropIdentity()(gm)
    assert result.changed
    assert [edit.node for edit in result.edits] == ["_1", "_3", "_4"]
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["0", "2"]
    assert_close(run(gm, x), expected)


def test_the_pass_keeps_the_contract() -> None:
    gm = traced()
    assert DropIdentity() == DropIdentity()
    Pipeline((DropIdentity(),))(gm)
    before = fingerprint(gm)
    assert not DropIdentity()(gm).changed
    assert fingerprint(gm) == before
