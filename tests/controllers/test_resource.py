"""The resource term: its value, and its gradient through the cost of the whole model."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from controllers.loops import NETS, batch, build
from torch import Tensor

from fxprune import auto_gate
from fxprune.controllers.relaxation import round_straight_through
from fxprune.controllers.resource import resource_term
from fxprune.gated import GatedModule


def gate(kind: str) -> GatedModule:
    return auto_gate(build(kind), batch(0)[0])


def term_of(gated: GatedModule, resource: str, target: float, gates: Tensor) -> Tensor:
    ones = np.ones(gated.plan.n_units, dtype=bool)
    dense = getattr(gated.cost_of(ones), resource)
    return resource_term(getattr(gated.expected_cost(gates), resource) / dense, target)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize("target", [0.1, 0.9], ids=["above", "below"])
def test_gradient_equals_finite_differences(kind: str, resource: str, target: float) -> None:
    gated = gate(kind)
    generator = torch.Generator().manual_seed(0)
    size = gated.plan.n_units
    gates = 0.4 + 0.4 * torch.rand(size, generator=generator, dtype=torch.float64)
    gates.requires_grad_()
    term = term_of(gated, resource, target, gates)
    (slope,) = torch.autograd.grad(term, gates)
    step = 1e-6
    measured = torch.zeros_like(slope)
    with torch.no_grad():
        for unit in range(size):
            shift = torch.zeros_like(gates)
            shift[unit] = step
            up = term_of(gated, resource, target, gates + shift)
            down = term_of(gated, resource, target, gates - shift)
            measured[unit] = (up - down) / (2 * step)
    torch.testing.assert_close(slope, measured, rtol=1e-6, atol=1e-9)
    wanted = 1 if target == 0.1 else -1
    assert bool((slope.sign()[slope != 0] == wanted).all()), "above the target closing helps"
    # In evaluation, which the cost is of, an auxiliary head multiplies nothing.
    free = 5 if (kind, resource) == ("two modes", "macs") else 0
    assert int((slope == 0).sum()) == free


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("resource", ["macs", "params"])
def test_rounded_gates_cost_what_the_masks_cost(kind: str, resource: str) -> None:
    """The value is that of the hard masks, over the whole model; the slope reaches the soft gates."""
    gated = gate(kind)
    soft = torch.rand(gated.plan.n_units, dtype=torch.float64, requires_grad=True)
    keep = (soft > 0.5).numpy()
    term = term_of(gated, resource, 0.3, round_straight_through(soft))
    dense = getattr(gated.cost_of(np.ones_like(keep)), resource)
    share = getattr(gated.cost_of(keep), resource) / dense
    assert term.item() == pytest.approx(abs(math.log(share / 0.3)), rel=1e-12)
    (slope,) = torch.autograd.grad(term, soft)
    at = torch.from_numpy(keep).double().requires_grad_()
    (expected,) = torch.autograd.grad(term_of(gated, resource, 0.3, at), at)
    assert torch.equal(slope, expected)
    assert bool(slope.any())


def test_open_gates_keep_everything() -> None:
    gated = gate("residual")
    ones = torch.ones(gated.plan.n_units)
    assert term_of(gated, "macs", 1.0, ones).item() == 0
    assert term_of(gated, "params", 0.5, ones).item() == pytest.approx(math.log(2), rel=1e-12)


def share(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("target", [0.05, 0.5, 1.0])
def test_zero_at_the_target_and_pulls_nowhere(target: float) -> None:
    kept = share(target)
    term = resource_term(kept, target)
    term.backward()
    assert term.item() == 0
    assert kept.grad.item() == 0


@pytest.mark.parametrize("factor", [1.01, 1.5, 2.0, 8.0])
def test_symmetric_in_the_logarithm(factor: float) -> None:
    above, below = share(0.1 * factor), share(0.1 / factor)
    terms = [resource_term(kept, 0.1) for kept in (above, below)]
    for term in terms:
        term.backward()
    assert terms[0].item() == pytest.approx(math.log(factor), rel=1e-12)
    assert terms[1].item() == pytest.approx(math.log(factor), rel=1e-12)
    assert above.grad.item() == pytest.approx(1 / above.item(), rel=1e-12)
    assert below.grad.item() == pytest.approx(-1 / below.item(), rel=1e-12)


def test_finite_where_nothing_is_kept() -> None:
    """Random gates may close all there is, and the controller must survive that."""
    values = [share(kept) for kept in (0.0, 1e-300, 1e-5, 0.02, 0.05, 0.1)]
    terms = [resource_term(value, 0.5) for value in values]
    for value, term in zip(values, terms, strict=True):
        term.backward()
        assert math.isfinite(term.item())
        assert -50 < value.grad.item() < 0, "it still pulls up, and not without measure"
    assert terms[0].item() == terms[1].item()
    numbers = [term.item() for term in terms[1:]]
    assert numbers == sorted(set(numbers), reverse=True)


def test_a_chain_of_one_group_may_close_for_a_moment() -> None:
    net: Any = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    gated = auto_gate(net, torch.zeros(1, 4))
    soft = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    term_of(gated, "macs", 0.5, round_straight_through(soft)).backward()
    assert bool(torch.isfinite(soft.grad).all())
    assert bool((soft.grad < 0).all())
