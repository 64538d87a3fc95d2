"""Projections against plain references, unit by unit, over weights listed by hand.

Networks are float32, references are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from controllers.projection_cases import (
    CASES,
    Setting,
    assert_weights,
    half_space,
    norms,
    proximal,
    weights,
    with_sgd,
)
from small_nets import (
    image,
)
from torch import nn

from fxprune import auto_gate
from fxprune.controllers.pressure import FINAL_STRENGTH, STRENGTH, Pressure

# -- the proximal update -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_proximal_equals_its_closed_form(kind: str, seed: int) -> None:
    setting = Setting.make(kind, seed)
    # A strength that takes the smaller units to 0 and leaves the larger ones at something else.
    scales = [n / share for n, (_, share) in zip(norms(setting), setting.units(), strict=True)]
    strength = 2.002 * float(np.median(scales))
    pressure = with_sgd(setting, "proximal", lr=0.5, strength=strength)
    before, expected = weights(setting), proximal(setting, strength)
    pressure.apply(final=False, steps_left=10)
    assert_weights(setting, expected, before)
    after = norms(setting)
    assert any(n == 0 for n in after)
    if len(after) > 1:
        assert any(n > 0 for n in after)


def test_the_norm_runs_over_all_that_makes_a_unit() -> None:
    """Were every weight shrunk by its own norm, a large weight would not protect a small bias."""
    setting = Setting.make("conv")
    with torch.no_grad():
        for name, parameter in setting.parameters.items():
            if name == "0.weight":
                parameter.fill_(10.0)
            else:
                parameter.fill_(1e-3)
    pressure = with_sgd(setting, "proximal", lr=0.1, strength=1.0)
    pressure.apply(final=False, steps_left=1)
    for unit in np.flatnonzero(setting.closed):
        norm = math.sqrt(27 * 100 + 3e-6)
        for name in ("0.bias", "1.weight", "1.bias"):
            value = setting.parameters[name][int(unit)].item()
            assert value == pytest.approx(1e-3 * (1 - 0.1 / norm), rel=1e-6)


def test_the_strength_of_a_group_is_its_share_of_all_closed_units() -> None:
    """lambda_g = lambda * closed in the group / closed in all groups."""
    setting = Setting.make("residual")
    setting.closed[:] = False
    setting.closed[[0, 1, 2]] = True  # three of the stem, one of the inner layer
    setting.closed[8] = True
    pressure = with_sgd(setting, "proximal", lr=0.01, strength=8.0)
    before = norms(setting)
    pressure.apply(final=False, steps_left=1)
    fall = [b - a for b, a in zip(before, norms(setting), strict=True)]
    assert fall[:3] == pytest.approx([0.01 * 8 * 3 / 4] * 3, rel=1e-4)
    assert fall[3] == pytest.approx(0.01 * 8 * 1 / 4, rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.3, momentum=0.9, weight_decay=0.1),
        lambda groups: torch.optim.Adam(groups, lr=0.3),
        lambda groups: torch.optim.AdamW(groups, lr=0.3, weight_decay=0.1),
        lambda groups: torch.optim.Adam(groups, lr=torch.tensor(0.3), capturable=False),
    ],
    ids=["sgd", "adam", "adamw", "tensor lr"],
)
def test_the_learning_rate_is_read_live(make: Callable[..., torch.optim.Optimizer]) -> None:
    """Each parameter's own rate, as it is after the optimizer, the scheduler or the user changed it."""
    setting = Setting.make("residual")
    named = setting.parameters
    slow = [p for name, p in named.items() if name.startswith("norm")]
    fast = [p for name, p in named.items() if not name.startswith("norm")]
    optimizer = make([{"params": fast}, {"params": slow, "lr": 0.05}])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    pressure = Pressure(setting.gated, optimizer, "proximal", 0.9)
    pressure.close(setting.closed)
    for factor in (1, 1 / 2, 1 / 3):
        setting.rates = {n: (0.05 if n.startswith("norm") else 0.3) * factor for n in named}
        before, expected = weights(setting), proximal(setting, 0.9)
        pressure.apply(final=False, steps_left=1)
        assert_weights(setting, expected, before)
        optimizer.step()  # no gradients: weights stay, only the scheduler needs it
        scheduler.step()


def test_weights_that_the_optimizer_does_not_train_stay() -> None:
    setting = Setting.make("conv")
    named = setting.parameters
    trained = [p for name, p in named.items() if name != "0.weight"]
    optimizer = torch.optim.SGD(trained, 0.2)
    setting.rates = {name: 0.0 if name == "0.weight" else 0.2 for name in named}
    pressure = Pressure(setting.gated, optimizer, "proximal", 2.0)
    pressure.close(setting.closed)
    before, expected = weights(setting), proximal(setting, 2.0)
    pressure.apply(final=False, steps_left=1)
    assert_weights(setting, expected, before)
    assert torch.equal(named["0.weight"], before["0.weight"])
    assert not torch.equal(named["0.bias"], before["0.bias"])


def test_optimizer_state_and_gradients_are_left_alone() -> None:
    setting = Setting.make("residual")
    optimizer = torch.optim.Adam(setting.gated.parameters(), 0.1)
    setting.gated(image().float()).square().sum().backward()
    optimizer.step()
    gradients = {name: p.grad.clone() for name, p in setting.parameters.items()}
    moments = [s["exp_avg"].clone() for s in optimizer.state.values()]
    pressure = Pressure(setting.gated, optimizer, "proximal", 1.0)
    pressure.close(setting.closed)
    pressure.apply(final=False, steps_left=1)
    assert all(torch.equal(p.grad, gradients[name]) for name, p in setting.parameters.items())
    assert all(
        torch.equal(s["exp_avg"], m) for s, m in zip(optimizer.state.values(), moments, strict=True)
    )


@pytest.mark.parametrize("kind", ["proximal", "half-space"])
@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_zero_stays_zero(kind: str, lr: float) -> None:
    """Also where the learning rate has run out, as at the end of a cosine."""
    setting = Setting.make("conv")
    with torch.no_grad():
        for entries, _ in setting.units():
            for name, at in entries:
                setting.parameters[name][at] = 0.0
    pressure = with_sgd(setting, kind, lr=lr, strength=10.0)
    before = weights(setting)
    for final in (False, True):
        pressure.apply(final=final, steps_left=3)
        for name, parameter in setting.parameters.items():
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("kind", ["proximal", "half-space"])
def test_a_rate_of_zero_moves_nothing(kind: str) -> None:
    setting = Setting.make("residual")
    pressure = with_sgd(setting, kind, lr=0.0, strength=None)
    before = weights(setting)
    pressure.apply(final=False, steps_left=3)
    pressure.apply(final=True, steps_left=0)
    assert all(torch.equal(p, before[name]) for name, p in setting.parameters.items())


@pytest.mark.parametrize("kind", ["proximal", "half-space"])
def test_closing_nothing_changes_nothing(kind: str) -> None:
    setting = Setting.make("residual")
    setting.closed[:] = False
    pressure = with_sgd(setting, kind, lr=0.1, strength=10.0)
    before = weights(setting)
    pressure.apply(final=True, steps_left=0)
    assert all(torch.equal(p, before[name]) for name, p in setting.parameters.items())


@pytest.mark.parametrize("kind", ["proximal", "half-space"])
def test_weights_keep_their_place_and_memory_format(kind: str) -> None:
    setting = Setting.make("residual")
    setting.gated.to(memory_format=torch.channels_last)
    layout = {n: (p.stride(), p.data_ptr(), id(p)) for n, p in setting.parameters.items()}
    assert setting.parameters["outer.weight"].stride() != torch.empty(8, 6, 3, 3).stride()
    pressure = with_sgd(setting, kind, lr=0.1, strength=1.0)
    expected = proximal(setting, 1.0)
    before = weights(setting)
    pressure.apply(final=False, steps_left=2)
    assert layout == {n: (p.stride(), p.data_ptr(), id(p)) for n, p in setting.parameters.items()}
    if kind == "proximal":
        assert_weights(setting, expected, before)
    assert all(p.requires_grad and p.is_leaf for p in setting.parameters.values())


def test_closed_units_vanish_at_any_rate_once_masks_are_fixed() -> None:
    setting = Setting.make("conv")
    pressure = with_sgd(setting, "proximal", lr=1e-6, strength=None)
    for _ in range(20):
        pressure.apply(final=True, steps_left=0)
    assert not any(norms(setting))


def test_strength_before_and_after_masks_are_fixed() -> None:
    """The paper's 10 at least, then 1000."""
    assert (STRENGTH, FINAL_STRENGTH) == (10, 1000)
    setting = Setting.make("conv")  # one group: its share is 1
    pressure = with_sgd(setting, "proximal", lr=3e-4, strength=None)
    before = norms(setting)
    assert min(before) > 0.3
    pressure.apply(final=True, steps_left=0)
    fall = [b - a for b, a in zip(before, norms(setting), strict=True)]
    assert fall == pytest.approx([0.3] * len(fall), rel=1e-3)
    pressure = with_sgd(setting, "proximal", lr=1e-5, strength=None)
    before = norms(setting)
    pressure.apply(final=False, steps_left=10**9)
    fall = [b - a for b, a in zip(before, norms(setting), strict=True)]
    assert fall == pytest.approx([1e-5 * 10] * len(fall), rel=1e-2)


@pytest.mark.parametrize("lr", [1e-6, 1e-2])
def test_by_default_closed_units_vanish_in_the_steps_there_are(lr: float) -> None:
    """Also those of a group with next to no share of them: cutting it at once would hurt as much."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 300, 1), nn.ReLU(), nn.Conv2d(300, 2, 1)
    )
    gated = auto_gate(net, image().float())
    pressure = Pressure(gated, torch.optim.SGD(gated.parameters(), lr), "proximal", None)
    closed = np.ones(304, dtype=bool)
    closed[[0, 1, 2, 5]] = False  # one closed unit of 4 beside 299 of 300
    pressure.close(closed)
    assert pressure.norms()[closed].min() > 0
    for left in range(60, 0, -1):
        assert pressure.norms()[3] > 0
        pressure.apply(final=False, steps_left=left)
    assert not pressure.norms().any()


def test_a_strength_that_is_given_is_kept() -> None:
    setting = Setting.make("conv")  # one group: its share is 1
    pressure = with_sgd(setting, "proximal", lr=1e-5, strength=50.0)
    before = norms(setting)
    for left in range(60, 0, -1):
        pressure.apply(final=False, steps_left=left)
    fall = [b - a for b, a in zip(before, norms(setting), strict=True)]
    assert fall == pytest.approx([60 * 1e-5 * 50] * len(fall), rel=1e-3)


# -- the half-space projection -----------------------------------------------------------------------


def jolt(setting: Setting, seed: int, size: float) -> None:
    """Move all weights, as an optimizer step would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in setting.parameters.values():
            parameter += size * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("kind", CASES)
def test_half_space_equals_a_plain_reference(kind: str) -> None:
    """Over several steps: `x` is the unit as the last projection left it."""
    setting = Setting.make(kind, share=0.8)
    scales = [n / share for n, (_, share) in zip(norms(setting), setting.units(), strict=True)]
    strength = 0.8 * float(np.median(scales))
    pressure = with_sgd(setting, "half-space", lr=0.5, strength=strength)
    seen = set()
    for step in range(6):
        before = setting.copy()
        jolt(setting, step, 0.03)
        untouched, expected = weights(setting), half_space(setting, before, strength)
        pressure.apply(final=False, steps_left=10)
        assert_weights(setting, expected, untouched)
        seen |= {"zero" if n == 0 else "moved" for n in norms(setting)}
    assert seen == {"zero", "moved"}


def test_half_space_remembers_the_previous_values() -> None:
    """A unit that the step turned around becomes 0; one that only grew does not."""
    setting = Setting.make("conv")
    setting.closed[:] = False
    setting.closed[[1, 4]] = True
    pressure = with_sgd(setting, "half-space", lr=1e-3, strength=1.0)
    with torch.no_grad():
        for name, at in CASES["conv"].makers["0"](1):
            setting.parameters[name][at] *= -0.5
        for name, at in CASES["conv"].makers["0"](4):
            setting.parameters[name][at] *= 1.5
    pressure.apply(final=False, steps_left=1)
    turned, grown = norms(setting)
    assert turned == 0
    assert grown > 0
    jolt(setting, 0, 0.01)
    pressure.apply(final=False, steps_left=1)
    assert norms(setting)[0] == 0, "what was 0 once stays 0"


def test_half_space_forgets_units_that_open_again() -> None:
    """`x` of a unit that closes anew is what it is then, not what it was when it closed before."""
    setting = Setting.make("conv")
    pressure = with_sgd(setting, "half-space", lr=0.1, strength=1.0)
    first = setting.closed.copy()
    other = ~first
    pressure.close(other)
    with torch.no_grad():
        for parameter in setting.parameters.values():
            parameter *= -1
    pressure.close(first)
    before = setting.copy()
    jolt(setting, 0, 0.01)
    untouched, expected = weights(setting), half_space(setting, before, 1.0)
    pressure.apply(final=False, steps_left=1)
    assert_weights(setting, expected, untouched)
    assert all(n > 0 for n in norms(setting))
