"""Steps of thetas at a price, and the price that a budget amounts to."""

from __future__ import annotations

import math

import pytest
import torch

from fxprune.controllers.price import Market, follow_budget

N = 40


def market(effects=None, rate: float = 0.1, theta: float = 1.0, free=None) -> Market:
    generator = torch.Generator().manual_seed(0)
    prices = torch.rand(N, generator=generator, dtype=torch.float64) + 0.1
    worth = -torch.rand(N, generator=generator, dtype=torch.float64) * prices
    return Market(
        torch.full((N,), theta, dtype=torch.float64),
        worth if effects is None else effects,
        prices,
        torch.ones(N, dtype=torch.bool) if free is None else free,
        rate,
        sharpness=4.0,
    )


def test_steps_lead_against_the_slope_and_are_bounded() -> None:
    one = market(theta=0.5)
    for nu in (0.01, 0.5, 1.0):
        step = one.step(nu)
        assert torch.equal(step.sign(), -(one.effects + nu * one.prices).sign())
        assert step.abs().max() <= 0.1
    assert (one.step(2.0) < 0).all(), "at twice what any is worth, all should leave"


def test_a_fixed_point_of_the_step_is_one_of_the_slope() -> None:
    one = market(effects=-0.7 * market().prices)
    assert one.step(0.7).abs().max() < 1e-12


def test_what_is_not_free_does_not_move() -> None:
    free = torch.arange(N) % 2 == 0
    step = market(free=free).step(5.0)
    assert torch.equal(step != 0, free)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_budget_finds_the_price_of_the_change_wanted(share: float) -> None:
    one = market()
    most = one.change(one.step(1e6), one.prices)
    step, nu = follow_budget(one, one.prices, share * most, None)
    assert one.change(step, one.prices) == pytest.approx(share * most, rel=0.05)
    worth = -one.effects / one.prices
    assert 0 < nu < 2 * worth.max()
    assert worth[step < 0].max() <= nu * 1.001


def test_structures_that_do_harm_leave_no_faster_than_the_budget_says() -> None:
    one = market(effects=torch.ones(N, dtype=torch.float64))
    step, nu = follow_budget(one, one.prices, -0.05, None)
    assert nu is None
    assert one.change(step, one.prices) == pytest.approx(-0.05)
    assert (step <= 0).all()
    step, _ = follow_budget(one, one.prices, 0.05, None)
    assert one.change(step, one.prices) == 0, "nothing leaves while the cost is below the path"


def test_prices_are_averaged() -> None:
    one = market()
    wanted = 0.5 * one.change(one.step(1e6), one.prices)
    _, alone = follow_budget(one, one.prices, wanted, None)
    _, after = follow_budget(one, one.prices, wanted, 100 * alone)
    assert math.log(after) == pytest.approx((math.log(alone) + math.log(100 * alone)) / 2)


def test_thetas_come_back_where_the_cost_is_too_low() -> None:
    one = market(theta=0.5)
    step, _ = follow_budget(one, one.prices, 0.2, None)
    assert one.change(step, one.prices) == pytest.approx(0.2, rel=0.05)
