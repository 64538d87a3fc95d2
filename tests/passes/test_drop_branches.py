"""What drop_branches takes out of a graph, and what it leaves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from branch_nets import SPELLINGS, TRAPS, Chained, Counted, Nested, Net, conv
from gate_checks import assert_close, run
from small_nets import Residual, image
from torch import fx, nn

from fxprune.analysis.build import Analysis
from fxprune.analysis.plan import Keep, Plan
from fxprune.capture import capture
from fxprune.gates import GateVector
from fxprune.passes.base import fingerprint
from fxprune.passes.drop_branches import DropBranches
from fxprune.passes.insert_gates import GATES, InsertGates
from fxprune.passes.remove_gates import RemoveGates

NETS = {
    "resnet": Counted,
    "nested": Nested,
    "chained": Chained,
    **{
        name: lambda body=body: Net(body, one=conv(), two=conv())
        for name, body in {**TRAPS, "in place": SPELLINGS["in place"]}.items()
    },
}
every_net = pytest.mark.parametrize("name", NETS)


def captured(model: nn.Module) -> tuple[fx.GraphModule, Plan]:
    found = capture(copy.deepcopy(model), ((image(),), {}))
    plan = Analysis(found.root, found.graphs, branches=True).run((image(),), {}, lambda name: None)
    return fx.GraphModule(found.root, found.graphs["eval"]), plan


def masks(plan: Plan, seed: int = 0) -> Keep:
    """Keep all channels and about half of the branches."""
    keep = np.ones(plan.n_units, dtype=bool)
    slices = plan.group_slices()
    at = [slices[group.name].start for group in plan.groups if group.kind == "branch"]
    keep[at] = np.random.default_rng(seed).random(len(at)) < 0.5
    keep[at[0]] = False
    return keep


@every_net
@pytest.mark.parametrize("gated", [False, True])
def test_the_graph_computes_what_the_gated_one_does(name: str, gated: bool) -> None:
    """Also while the gates are still in it."""
    x, net = image(), NETS[name]()
    gm, plan = captured(net)
    twin, _ = captured(net)
    InsertGates(plan)(twin)
    keep = masks(plan)
    vector = twin.get_submodule(GATES)
    assert isinstance(vector, GateVector)
    vector.set_hard(torch.from_numpy(keep))
    if gated:
        InsertGates(plan)(gm)
    result = DropBranches(plan, keep)(gm)
    assert result.changed
    assert result.edits
    assert_close(run(gm, x), run(twin, x))
    if gated:
        RemoveGates()(gm)
        assert_close(run(gm, x), run(twin, x))


@every_net
def test_a_second_run_changes_nothing(name: str) -> None:
    gm, plan = captured(NETS[name]())
    keep = masks(plan)
    DropBranches(plan, keep)(gm)
    before = fingerprint(gm)
    second = DropBranches(plan, keep)(gm)
    assert (second.changed, second.edits) == (False, ())
    assert fingerprint(gm) == before


@every_net
def test_keeping_everything_changes_nothing(name: str) -> None:
    gm, plan = captured(NETS[name]())
    before = fingerprint(gm)
    assert not DropBranches(plan, np.ones(plan.n_units, dtype=bool))(gm).changed
    assert fingerprint(gm) == before


def test_branch_after_branch_is_both_at_once() -> None:
    gm, plan = captured(Nested())
    twin = copy.deepcopy(gm)
    keep = masks(plan)
    keep[-2:] = False
    for closed in (-2, -1):
        one = np.ones(plan.n_units, dtype=bool)
        one[closed] = False
        DropBranches(plan, one)(gm)
    DropBranches(plan, keep)(twin)
    assert str(gm.graph) == str(twin.graph)


def test_a_net_without_branches_is_left_alone() -> None:
    found = capture(Residual(), ((image(),), {}))
    plan = Analysis(found.root, found.graphs).run((image(),), {}, lambda name: None)
    gm = fx.GraphModule(found.root, found.graphs["eval"])
    assert not DropBranches(plan, np.zeros(plan.n_units, dtype=bool))(gm).changed


def test_edits_name_the_sum_and_what_goes() -> None:
    gm, plan = captured(Counted(1))
    edits = DropBranches(plan, masks(plan))(gm).edits
    assert edits[0].why == "the other operand was removed"
    assert {"blocks_0_0", "blocks_0_4"} <= {edit.node for edit in edits[1:]}


def test_the_counter_of_a_norm_goes_with_it() -> None:
    """Nobody reads what such a write returns; those of modules that stay are left."""
    found = capture(Net(SPELLINGS["operator"], one=conv(), two=conv()), ((image(),), {}))
    graph = found.graphs["eval"]
    for path in ("one", "stem"):
        layer = found.root.get_submodule(path)
        layer.register_buffer("count", torch.zeros((), dtype=torch.long))
        with graph.inserting_before(next(n for n in graph.nodes if n.op != "placeholder")):
            graph.call_method("add_", (graph.get_attr(f"{path}.count"), 1))
    plan = Analysis(found.root, found.graphs, branches=True).run((image(),), {}, lambda name: None)
    gm = fx.GraphModule(found.root, graph)
    DropBranches(plan, masks(plan))(gm)
    assert [n.target for n in gm.graph.nodes if n.op == "get_attr"] == ["stem.count"]
    assert [n.target for n in gm.graph.nodes if n.op == "call_method"] == ["add_"]
