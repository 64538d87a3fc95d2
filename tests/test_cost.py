"""What a mask costs: exact against counting, differentiable against finite differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gate_checks import assert_cost, keep_vector, random_keep
from random_nets import random_net
from small_nets import (
    AuxHead,
    Concat,
    Depthwise,
    Grouped,
    LayerNormMlp,
    Residual,
    Shuffle,
    image,
    rows,
)
from torch import Tensor, nn

from fxprune.api import auto_gate
from fxprune.cost import Cost, CostModel
from fxprune.gated import GatedModule


class OuterProduct(nn.Module):
    """Two axes that carry channels merge: every position of the result needs a unit of each."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.read = nn.Linear(6, 3), nn.Linear(6, 5), nn.Linear(15, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.read((self.left(x).unsqueeze(2) * self.right(x).unsqueeze(1)).flatten(1))


NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (Residual(), image()),
    "concat": lambda: (Concat(), image()),
    "depthwise": lambda: (Depthwise(), image()),
    "grouped": lambda: (Grouped(), image()),
    "shuffle": lambda: (Shuffle(), image()),
    "layer_norm": lambda: (LayerNormMlp(), rows()),
    "outer_product": lambda: (OuterProduct(), rows()),
    "two_modes": lambda: (AuxHead(), image()),
    **{f"random_{seed}": lambda seed=seed: random_net(seed) for seed in range(600, 606)},
}


def gated_net(name: str) -> tuple[GatedModule, Tensor]:
    model, x = NETS[name]()
    return auto_gate(model, x), x


def pair(gated: GatedModule, gates: Tensor) -> Tensor:
    cost = gated.expected_cost(gates)
    return torch.stack([cost.macs, cost.params])


nets = pytest.mark.parametrize("name", NETS)


# -- exact -----------------------------------------------------------------------------------------------------


@nets
def test_exact_cost_is_that_of_the_compact_model(name: str) -> None:
    gated, x = gated_net(name)
    assert_cost(gated, gated.compact(), x)
    for seed, share in enumerate((0.1, 0.4, 0.8)):
        gated.set_keep(random_keep(gated, share, seed))
        assert_cost(gated, gated.compact(), x)


def test_exact_cost_by_hand() -> None:
    """Kernel entries that are kept, times the pixels they are applied at, summed over the batch."""
    gated = auto_gate(Residual(), image(size=6, batch=2))
    gated.set_keep({"stem": torch.arange(8) < 5, "inner": torch.arange(6) < 2})
    stem, inner, outer, head = 5 * 3 * 9, 2 * 5 * 9, 5 * 2 * 9, 4 * 5
    assert gated.cost() == Cost(
        macs=2 * 36 * (stem + inner + outer + head), params=stem + inner + outer + head + 2 * 5
    )


def test_cost_is_that_of_the_example_inputs() -> None:
    small, large = (
        auto_gate(Residual(), image(size=size, batch=b)).cost() for size, b in ((4, 1), (8, 3))
    )
    assert large.macs == small.macs * 4 * 3
    assert large.params == small.params


def test_cost_of_a_mask_that_is_not_set() -> None:
    gated, _ = gated_net("residual")
    keep = np.arange(14) % 3 != 0
    before = gated.cost()
    asked = gated.cost_of(keep)
    assert gated.cost() == before
    gated.set_keep(
        {name: torch.from_numpy(keep[at]) for name, at in gated.plan.group_slices().items()}
    )
    assert gated.cost() == asked


def test_cost_is_made_of_python_integers() -> None:
    cost = gated_net("residual")[0].cost()
    assert (type(cost.macs), type(cost.params)) == (int, int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cost.macs = 0  # type: ignore[misc]


def test_a_cost_beyond_32_bits_is_exact() -> None:
    net = nn.Sequential(nn.Linear(3001, 4001), nn.ReLU(), nn.Linear(4001, 2999))
    gated = auto_gate(net, torch.empty(9973, 3001, device="meta").float())
    assert gated.cost().macs == 9973 * 4001 * (3001 + 2999)
    (group,) = gated.groups
    gated.set_keep({group.name: torch.arange(4001) < 3999})
    assert gated.cost().macs == 9973 * 3999 * (3001 + 2999)


# -- expected --------------------------------------------------------------------------------------------------


@nets
def test_expected_cost_of_hard_gates_is_exact(name: str) -> None:
    gated, _ = gated_net(name)
    for seed, share in enumerate((0.0, 0.3, 0.7, 1.0)):
        gated.set_keep(random_keep(gated, share, seed))
        cost, expected = gated.cost(), gated.expected_cost()
        assert (expected.macs.item(), expected.params.item()) == (cost.macs, cost.params)
        assert expected.macs.dtype is torch.float64
        assert expected.macs.shape == ()
        vector = torch.from_numpy(keep_vector(gated)).float()
        assert torch.equal(pair(gated, vector), torch.stack([expected.macs, expected.params]))


@nets
def test_gradient_against_finite_differences(name: str) -> None:
    gated, _ = gated_net(name)
    generator = torch.Generator().manual_seed(1)
    gates = torch.rand(gated.plan.n_units, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    scale = pair(gated, torch.ones_like(gates)) / 100
    assert torch.autograd.gradcheck(
        lambda g: pair(gated, g) / scale, (gates.requires_grad_(),), eps=1e-4, atol=1e-5, rtol=1e-4
    )


@nets
def test_monotone(name: str) -> None:
    """Opening a gate further never makes a model cheaper, and closing one makes it cheaper."""
    gated, _ = gated_net(name)
    generator = torch.Generator().manual_seed(2)
    n = gated.plan.n_units
    low = torch.rand(n, generator=generator, dtype=torch.float64)
    high = low + (1 - low) * torch.rand(n, generator=generator, dtype=torch.float64)
    assert (pair(gated, high) >= pair(gated, low)).all()
    gates = low.requires_grad_()
    (slope,) = torch.autograd.grad(pair(gated, gates)[1], gates)
    assert (slope > 0).all()
    (slope,) = torch.autograd.grad(pair(gated, gates)[0], gates)
    assert (slope >= 0).all()


def test_expected_cost_is_the_mean_over_random_masks() -> None:
    """Where no unit occurs twice in a term it is the expectation over independent units."""
    gated, _ = gated_net("concat")
    probabilities = torch.linspace(0.2, 0.8, 12, dtype=torch.float64)
    expected = pair(gated, probabilities)
    total, weights = torch.zeros(2, dtype=torch.float64), 0.0
    for bits in range(1 << 12):
        keep = np.array([bool(bits >> i & 1) for i in range(12)])
        p = torch.where(torch.from_numpy(keep), probabilities, 1 - probabilities).prod()
        cost = gated.cost_of(keep)
        total += p * torch.tensor([cost.macs, cost.params], dtype=torch.float64)
        weights += p.item()
    assert weights == pytest.approx(1)
    torch.testing.assert_close(expected, total, rtol=1e-9, atol=0)


def test_expected_cost_of_the_gates_in_use() -> None:
    gated, _ = gated_net("residual")
    soft = torch.full((14,), 0.5, requires_grad=True)
    with gated.soft_gates(soft):
        inside = gated.expected_cost()
        assert gated.cost() == gated_net("residual")[0].cost()
    assert inside.macs.item() < gated.expected_cost().macs.item()
    inside.macs.backward()
    assert soft.grad is not None
    assert soft.grad.dtype is torch.float32
    assert (soft.grad > 0).all()


def test_a_model_without_groups_costs_what_it_costs() -> None:
    gated = auto_gate(nn.Sequential(nn.Linear(6, 2)).double(), rows())
    assert gated.cost() == Cost(macs=5 * 12, params=14)
    model = CostModel(gated.plan)
    assert model.exact(np.zeros(0, dtype=bool)) == gated.cost()
    assert model.expected(torch.zeros(0)).macs.item() == 60


def test_unread_parameters_are_not_counted_and_shared_ones_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.spare = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(9, 9)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    gated = auto_gate(Net().double(), rows())
    assert gated.cost() == Cost(macs=2 * 5 * 36, params=36 + 12)
