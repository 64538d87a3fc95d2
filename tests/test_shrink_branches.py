"""Removed branches leave a gated model for good: nodes, modules, parameters and what trains them."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from branch_nets import SPELLINGS, TRAPS, Chained, Counted, Nested, Net, conv
from gate_checks import assert_cost, assert_equal_to_compact, random_keep
from random_nets import random_net
from shrinking import OPTIMIZERS, Training, assert_equal_bits, assert_same, close, further
from small_nets import image
from test_shrunk_models import assert_shrunk
from torch import Tensor, nn

import fxprune
from fxprune.gated import GatedModule

NETS = {
    "counted": Counted,
    "nested": Nested,
    "chained": Chained,
    "spelled": lambda: Net(SPELLINGS["in place"], one=conv()),
    **{
        name: lambda body=body: Net(body, one=conv(), two=conv())  # type: ignore[misc]
        for name, body in TRAPS.items()
    },
}


def branches(gated: GatedModule) -> list[str]:
    return [group.name for group in gated.groups if group.kind == "branch"]


def closing(gated: GatedModule, names: tuple[str, ...], share: float, seed: int) -> None:
    """Set random masks that close these branches and no others."""
    masks = random_keep(gated, share, seed)
    gated.set_keep(masks | {n: torch.tensor([n not in names]) for n in branches(gated)})


def holder(gated: GatedModule, parameter: str) -> str:
    """Return the branch that a parameter dies with."""
    (name,) = (
        group.name
        for group in gated.groups
        if group.kind == "branch" and parameter in {m.fqn for m in group.members}
    )
    return name


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize("name", NETS)
def test_branches_go_one_after_the_other(name: str, share: float) -> None:
    """In every order; what is left can be pruned further."""
    first, x = fxprune.auto_gate(NETS[name](), image(), branches=True), image()
    found = branches(first)
    assert found
    for order in itertools.permutations(found, min(2, len(found))):
        whole, small = copy.deepcopy(first), copy.deepcopy(first)
        for number, branch in enumerate(order):
            if branch not in branches(small):  # it was in the one before
                continue
            closing(small, (branch,), share, number)
            whole.set_keep(small.original_keep)
            shrunk = small.shrink_()
            assert shrunk.removed[branch] == 1
            assert branch not in branches(small)
            assert_shrunk(small, whole, x)
        small.set_keep(random_keep(small, 0.7))
        assert_cost(small, assert_equal_to_compact(small, x), x)


def test_what_was_in_a_branch_goes_with_it(tmp_path: Path) -> None:
    model, x = Nested(), image()
    gated = fxprune.auto_gate(model, x, branches=True)
    inner, outer = branches(gated)
    lost = {"first.weight", "first.bias", "inner.weight", "inner.bias", "last.weight", "last.bias"}
    closing(gated, (outer,), 1.0, 0)
    before = {name for name, _ in gated.named_parameters()}
    shrunk = gated.shrink_()
    assert before - {name for name, _ in gated.named_parameters()} == lost
    assert [name for name, _ in gated.named_children() if name in ("first", "inner", "last")] == []
    assert branches(gated) == []
    assert shrunk.removed.keys() >= {inner, outer}
    assert not {m.fqn for group in gated.groups for m in group.members} & lost
    assert not {axis.member.fqn for axis in gated.frozen} & lost
    assert bool(gated.remaining[inner])
    assert not gated.remaining[outer]
    compact = gated.compact()
    fxprune.save(compact, tmp_path / "small.pt")
    loaded = fxprune.load(tmp_path / "small.pt", model)
    assert_equal_bits(loaded.state_dict(), compact.state_dict())


class Deep(nn.Module):
    """Blocks with norms, the middle one with a block inside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.norms[0](self.layers[0](x)).relu()
        y = self.norms[1](self.layers[1](x)).tanh()
        y = y + self.norms[2](self.layers[2](y)).sigmoid()
        x = torch.relu(x + y)
        x = x + self.norms[3](self.layers[3](x)).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_without_them(optimizer: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 5
    gated = fxprune.auto_gate(Deep().double(), x, branches=True)
    masked = Training(gated, OPTIMIZERS[optimizer](gated.parameters()), x, y, clip=0.5)
    masked.step()
    small = masked.copy()
    held = len(small.optimizer.param_groups[0]["params"])
    for parameter, lost in (("layers.0.weight", 3), ("layers.1.weight", 6)):
        closing(small.gated, (holder(small.gated, parameter),), 0.8, 0)
        masked.gated.set_keep(small.gated.original_keep)
        small.gated.shrink_(small.optimizer)
        held -= lost
        assert len(small.optimizer.param_groups[0]["params"]) == held
        assert len(small.optimizer.state) == len(list(small.gated.parameters())) == held
        for step in range(3):
            close(small.step(), masked.step(), f"loss of step {step}")
            assert_same(small, masked, f"step {step}")
    fresh = fxprune.auto_gate(Deep().double(), x, branches=True)
    again = OPTIMIZERS[optimizer](fresh.parameters())
    fresh.shrink_to_(small.gated.remaining, again)
    fresh.load_state_dict(small.gated.state_dict())
    again.load_state_dict(copy.deepcopy(small.optimizer.state_dict()))
    resumed = Training(fresh, again, x, y, clip=0.5)
    for _ in range(2):
        assert torch.equal(resumed.step(), small.step())


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(s, marks=pytest.mark.slow) for s in range(8, 200))]
)
def test_random_networks_with_branches(seed: int) -> None:
    model, x = random_net(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    whole = fxprune.auto_gate(model, x, branches=True)
    small = copy.deepcopy(whole)
    for number, share in enumerate((0.7, 0.6)):
        whole.set_keep(further(small, share, 10 * seed + number))
        if branches(small):
            closing(small, tuple(branches(small)[:: 2 - number]), share, seed)
            whole.set_keep(small.original_keep)
        small.shrink_()
        assert_shrunk(small, whole, x)
