"""Gates that are random and nearly binary: their formula, noise, rounding, and how a run starts."""

from __future__ import annotations

import math

import pytest
import torch
from controllers.loops import nothing_random

from fxprune.controllers.network import ControllerNetwork
from fxprune.controllers.relaxation import (
    OPEN_BIAS,
    TEMPERATURE,
    logistic_noise,
    relax,
    round_straight_through,
)

# -- the formula -------------------------------------------------------------------------------------


def test_soft_gates_are_those_of_the_paper() -> None:
    assert (TEMPERATURE, OPEN_BIAS) == (0.4, 3.0)
    logits = torch.linspace(-8, 4, 25, dtype=torch.float64)
    noise = torch.randn(25, dtype=torch.float64)
    expected = [
        1 / (1 + math.exp(-(o + e + 3) / 0.4)) for o, e in zip(logits.tolist(), noise.tolist(), strict=True)
    ]  # fmt: skip
    assert relax(logits, noise).tolist() == pytest.approx(expected, rel=1e-12)


def test_gradients_reach_the_logits() -> None:
    logits = torch.linspace(-5, 0, 9, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(9, dtype=torch.float64)
    gates = relax(logits, noise)
    gates.sum().backward()
    torch.testing.assert_close(logits.grad, (gates * (1 - gates) / 0.4).detach())


# -- rounding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounded_gates_are_0_or_1(dtype: torch.dtype) -> None:
    soft = torch.rand(1000, dtype=dtype)
    hard = round_straight_through(soft)
    assert hard.dtype is dtype
    assert set(hard.tolist()) == {0.0, 1.0}
    assert torch.equal(hard, (soft > 0.5).to(dtype))
    assert round_straight_through(torch.tensor([0.4999999, 0.5000001])).tolist() == [0, 1]


def test_gradients_pass_the_rounding_unchanged() -> None:
    soft = torch.rand(50, requires_grad=True)
    upstream = torch.randn(50)
    round_straight_through(soft).backward(upstream)
    assert torch.equal(soft.grad, upstream)


def test_the_resource_sees_rounded_gates_and_the_logits_get_the_soft_slope() -> None:
    logits = (torch.randn(20, dtype=torch.float64) - 3).requires_grad_()
    upstream = torch.randn(20, dtype=torch.float64)
    gates = relax(logits)
    (rounded_slope,) = torch.autograd.grad(
        round_straight_through(gates), logits, upstream, retain_graph=True
    )
    (soft_slope,) = torch.autograd.grad(gates, logits, upstream)
    assert torch.equal(rounded_slope, soft_slope)
    assert soft_slope.abs().min() > 0


# -- noise -------------------------------------------------------------------------------------------


def test_noise_is_logistic() -> None:
    """The difference of two Gumbel variables: median 0, and P(noise < x) = sigmoid(x)."""
    n = 200_000
    noise = logistic_noise(n, torch.Generator().manual_seed(3)).double()
    assert noise.shape == (n,)
    assert bool(torch.isfinite(noise).all())
    for x in (-6.0, -3.0, -1.0, -0.2, 0.0, 0.5, 2.0, 5.0):
        p = 1 / (1 + math.exp(-x))
        spread = math.sqrt(p * (1 - p) / n)
        assert float((noise < x).double().mean()) == pytest.approx(p, abs=4 * spread), x
    uniform = torch.rand(2, n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gumbels = -torch.log(-torch.log(uniform))
    quantiles = torch.linspace(0.05, 0.95, 10, dtype=torch.float64)
    expected = torch.quantile(gumbels[0] - gumbels[1], quantiles)
    torch.testing.assert_close(torch.quantile(noise, quantiles), expected, rtol=0, atol=0.05)


def test_noise_comes_from_its_generator_only() -> None:
    with nothing_random():
        first = logistic_noise(100, torch.Generator().manual_seed(1))
        same = logistic_noise(100, torch.Generator().manual_seed(1))
        other = logistic_noise(100, torch.Generator().manual_seed(2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    generator = torch.Generator().manual_seed(1)
    logistic_noise(100, generator)
    assert not torch.equal(logistic_noise(100, generator), first), "each draw is a new one"


def test_the_noise_free_gate_is_the_likelier_one() -> None:
    for logit in (-4.5, -3.2, -2.8, 0.0):
        logits = torch.full((20_000,), logit)
        noisy = relax(logits, logistic_noise(20_000, torch.Generator().manual_seed(0))) > 0.5
        noise_free = bool(relax(logits[:1]) > 0.5)
        assert (float(noisy.float().mean()) > 0.5) == noise_free


# -- the start of a run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[1], [64], [3, 512, 1, 40], [16] * 90], ids=["one", "group", "uneven", "many"]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_gates_are_open_at_the_start(sizes: list[int], seed: int) -> None:
    logits = ControllerNetwork(sizes, seed)().detach()
    assert bool((relax(logits) > 0.5).all()), "all without noise"
    draws = [
        relax(logits, logistic_noise(sum(sizes), torch.Generator().manual_seed(s))) > 0.5
        for s in range(max(1, 4000 // sum(sizes)))
    ]
    share = float(torch.cat(draws).float().mean())
    assert 0.9 < share < 1, "most with noise, and not all: noise must be able to close one"
