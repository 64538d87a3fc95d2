"""Branches: operands of residual adds that are gated, priced and removed as one unit."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from branch_checks import branches, check_all_masks, gate, keep
from branch_nets import NONE, SPELLINGS, TRAPS, Chained, Counted, Nested, Net, conv
from gate_checks import (
    assert_close,
    assert_cost,
    random_keep,
    run,
)
from small_nets import Residual, image
from torch import Tensor, nn

import fxprune
from fxprune.api import auto_gate
from fxprune.errors import ConfigError, GateError

# -- what is found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_an_add_has_a_branch(spelling: str) -> None:
    gated = check_all_masks(Net(SPELLINGS[spelling], one=conv()), image())
    (group,) = branches(gated)
    assert group.size == 1
    assert [m.fqn for m in group.members] == ["one.weight", "one.bias"]


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_branch(name: str) -> None:
    net = Net(NONE[name], one=conv())
    net.table = nn.Parameter(torch.rand(1, 4, 6, 6, dtype=torch.float64))
    assert branches(check_all_masks(net, image())) == []


def test_there_are_none_unless_asked_for() -> None:
    assert branches(auto_gate(Counted(), image())) == []


def test_branches_come_last_and_leave_the_other_groups_as_they_were() -> None:
    plain, gated = auto_gate(Counted(), image()), gate(Counted())
    assert gated.groups[: len(plain.groups)] == plain.groups
    assert [g.name for g in gated.groups[len(plain.groups) :]] == [f"blocks.{i}" for i in range(3)]


def test_of_two_candidates_the_larger_is_offered() -> None:
    """One operand must stay: where a downsampling shortcut could be a branch too, it does not."""
    net = Net(lambda net, x: net.short(x) + net.long(x), short=nn.Conv2d(4, 4, 1), long=conv())
    assert [g.members[0].fqn for g in branches(gate(net))] == ["long.weight"]


def test_an_ignored_part_keeps_its_branch() -> None:
    gated = auto_gate(Counted(), image(), branches=True, ignore="blocks.1.3")
    assert [g.name for g in branches(gated)] == ["blocks.0", "blocks.2"]


def test_names_go_on_where_branches_share_a_path() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.mix, self.norm2 = nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6)
            self.mlp = nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.mix(self.norm1(x))
            return x + self.mlp(self.norm2(x))

    x = torch.rand(2, 6, dtype=torch.float64)
    gated = check_all_masks(nn.Sequential(Block(), nn.Linear(6, 6)).double(), x)
    assert [g.name for g in branches(gated)] == ["0.mix", "0.mlp"]


# -- removal


@pytest.mark.parametrize("name", TRAPS)
def test_writes_in_place(name: str) -> None:
    check_all_masks(Net(TRAPS[name], one=conv(), two=conv()), image())


@pytest.mark.parametrize("way", ["compact", "shrunk"])
def test_what_is_left_of_a_resnet_trains_with_its_relus_in_place(way: str) -> None:
    """A ReLU in place keeps its result for the backward pass: the next one must not write to it."""
    x = image()
    gated = check_all_masks(Counted(2), x).train()
    gated.set_keep(keep(gated, False, False))
    weight = "stem.0.weight"

    def slope(model: nn.Module) -> Tensor:
        (found,) = torch.autograd.grad(model(x).square().sum(), model.get_parameter(weight))
        return found

    masked = slope(gated)
    if way == "compact":
        small = gated.compact().train()
    else:
        gated.shrink_()
        small = gated
    torch.testing.assert_close(slope(small), masked)


def test_a_clone_stands_in_where_the_shortcut_is_read_later() -> None:
    gated = gate(Net(TRAPS["sum written, shortcut read later"], one=conv(), two=conv()))
    gated.set_keep(keep(gated, False, True))
    assert "clone" in str(gated.compact().graph)


def test_the_models_input_is_never_written() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = conv(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return (self.one(x) + x).relu_()

    x = image() - 0.5
    gated = gate(Plain().double(), x)
    gated.set_keep(keep(gated, False))
    before = x.clone()
    assert_close(run(gated.compact(), x), [before.relu()])
    assert torch.equal(x, before)


def test_nested_branches() -> None:
    gated = check_all_masks(Nested(), image())
    inner, outer = branches(gated)
    assert {m.fqn for m in inner.members} < {m.fqn for m in outer.members}


def test_what_two_branches_share_goes_with_the_last() -> None:
    gated = check_all_masks(Chained(), image())
    dense = gated.cost_of(np.ones(gated.plan.n_units, dtype=bool))
    first, second = branches(gated)
    assert [first.name, second.name] == ["left", "right"]
    net = Chained()
    left, right, shared = (
        sum(p.numel() for p in layer.parameters()) for layer in (net.left, net.right, net.shared)
    )
    gated.set_keep(random_keep(gated, 1) | keep(gated, False, True))
    assert dense.params - gated.cost().params == left
    gated.set_keep(keep(gated, False, False))
    assert dense.params - gated.cost().params == left + right + shared
    assert not any(name.startswith("shared") for name, _ in gated.compact().named_parameters())


def test_a_module_used_inside_and_outside_stays() -> None:
    net = Net(lambda net, x: net.one(x + net.one(x).relu()), one=conv())
    gated = check_all_masks(net, image())
    gated.set_keep(keep(gated, False))
    assert "one.weight" in dict(gated.compact().named_parameters())
    assert [m.fqn for m in branches(gated)[0].members] == ["one.weight", "one.bias"]


def test_one_module_in_two_branches_goes_with_the_last() -> None:
    def body(net: Net, x: Tensor) -> Tensor:
        x = x + net.one(x).relu()
        return x + net.one(x).relu()

    gated = check_all_masks(Net(body, one=conv()), image())
    assert len(branches(gated)) == 2
    gated.set_keep(keep(gated, False, True))
    assert "one.weight" in dict(gated.compact().named_parameters())
    gated.set_keep(keep(gated, False, False))
    assert "one.weight" not in dict(gated.compact().named_parameters())


def test_a_norm_that_others_use_too_is_no_part_of_a_branch() -> None:
    """Its statistics would no longer see what the branch feeds it."""
    net = Net(lambda net, x: net.norm(x) + net.norm(net.one(x)), one=conv(), norm=nn.BatchNorm2d(4))
    assert branches(gate(net)) == []


# -- masks, costs, budgets


def test_a_branch_may_be_closed_and_a_group_of_channels_not() -> None:
    gated = gate(Counted())
    gated.set_keep(keep(gated, False, True, False))
    assert [gated.keep[g.name].item() for g in branches(gated)] == [False, True, False]
    with pytest.raises(GateError, match="keeps nothing"):
        gated.set_keep({gated.groups[0].name: torch.zeros(gated.groups[0].size, dtype=torch.bool)})


def test_units_inside_a_removed_branch_cost_nothing() -> None:
    gated = gate(Counted())
    gated.set_keep(keep(gated, False, True, True))
    before = gated.cost()
    inside = next(g for g in gated.groups if g.name == "blocks.0.0")
    gated.set_keep({inside.name: torch.arange(inside.size) < 1})
    assert gated.cost() == before


def test_the_cost_is_the_expectation_over_independent_gates() -> None:
    """It is linear in each branch, and equals the mean over all masks at a half."""
    for net in (Nested(), Chained()):
        gated = gate(net)
        at = [gated.plan.group_slices()[g.name].start for g in branches(gated)]
        costs = []
        for kept in itertools.product((True, False), repeat=len(at)):
            vector = np.ones(gated.plan.n_units, dtype=bool)
            vector[at] = kept
            costs.append(gated.cost_of(vector).macs)
        soft = torch.ones(gated.plan.n_units)
        soft[at] = 0.5
        soft.requires_grad_(True)
        expected = gated.expected_cost(soft)
        assert expected.macs.item() == pytest.approx(np.mean(costs))
        expected.params.backward()
        assert (soft.grad[at] > 0).all()


def test_soft_gates_scale_the_branch() -> None:
    net, x = Counted(1), image()
    gated = gate(net, x)
    soft = torch.ones(gated.plan.n_units, dtype=torch.float64)
    soft[-1] = 0.25
    soft.requires_grad_(True)
    with gated.soft_gates(soft):
        y = gated(x)
    y.sum().backward()
    with torch.no_grad():
        z = net.stem(x)
        expected = net.head((net.blocks[0](z) * 0.25 + z).relu().mean((2, 3)))
    assert_close([y.detach()], [expected])
    assert soft.grad[-1] != 0


def test_a_budget_removes_branches() -> None:
    x = image()
    compact = fxprune.prune(Counted(6), x, macs=0.3, branches=True)
    assert compact.meta["fxprune"]["met"]
    with_only_channels = fxprune.prune(Counted(6), x, macs=0.3)
    names = {name for name, _ in compact.named_parameters()}
    assert names < {name for name, _ in with_only_channels.named_parameters()}


def test_a_budget_goes_below_what_channels_can_reach() -> None:
    gated = gate(Counted(6))
    scores = torch.ones(gated.plan.n_units)
    chosen = fxprune.prune(
        Counted(6), image(), params=0.2, branches=True, importance=lambda g: scores
    )
    assert chosen.meta["fxprune"]["reached"] < 0.21


def test_the_weaker_branch_has_the_lower_score() -> None:
    net = Counted(2)
    with torch.no_grad():
        for parameter in net.blocks[0].parameters():
            parameter.mul_(0.1)
    gated = gate(net)
    weak, strong = fxprune.importance.magnitude(gated)[-2:]
    assert weak < strong
    assert (weak + strong) / 2 == pytest.approx(1)


# -- around


def test_save_and_load(tmp_path: Path) -> None:
    x = image()
    net = Counted()
    gated = gate(net, x)
    gated.set_keep(random_keep(gated, 0.5, 1) | keep(gated, True, False, True))
    compact = gated.compact()
    fxprune.save(compact, tmp_path / "net.pt")
    loaded = fxprune.load(tmp_path / "net.pt", Counted())
    assert_close(run(loaded, x), run(compact, x))
    assert str(loaded.graph) == str(compact.graph)


def test_pickled_and_copied(tmp_path: Path) -> None:
    x = image()
    gated = gate(Counted(), x)
    gated.set_keep(keep(gated, True, False, True))
    torch.save(gated, tmp_path / "gated.pt")
    for twin in (copy.deepcopy(gated), torch.load(tmp_path / "gated.pt", weights_only=False)):
        assert_close(run(twin, x), run(gated, x))
        assert_close(run(twin.compact(), x), run(gated, x))


def test_a_compact_model_can_be_gated_again() -> None:
    x = image()
    gated = gate(Counted(), x)
    gated.set_keep(keep(gated, False, True, True))
    once = gated.compact()
    again = check_all_masks(once, x)
    assert len(branches(again)) == 2


def test_explain_counts_what_goes_with_a_branch() -> None:
    found = fxprune.explain(Counted(), image(), attention="off", branches=True)
    assert [g["kind"] for g in found.to_dict()["groups"]].count("branch") == 3
    assert "blocks.2" in str(found)
    plain = fxprune.explain(Counted(), image())
    assert found.prunable_params >= plain.prunable_params
    assert found.macs == plain.macs


def test_only_a_bool_is_taken() -> None:
    with pytest.raises(ConfigError, match="'branches' parameter must be True or False"):
        auto_gate(Residual(), image(), branches="yes")


def test_the_checks_notice_a_wrong_cost_and_a_wrong_branch() -> None:
    x = image()
    gated = gate(Counted(2), x)
    gated.set_keep(keep(gated, False, True))
    compact = gated.compact()
    gated.set_keep(keep(gated, True, False))
    with pytest.raises(AssertionError, match="compact against gated"):
        assert_close(run(compact, x), run(gated, x), "compact against gated")
    gated.set_keep(keep(gated, True, True))
    with pytest.raises(AssertionError, match="params"):
        assert_cost(gated, compact, x)
