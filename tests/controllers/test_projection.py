"""Projections against plain references, unit by unit, over weights listed by hand.

Networks are float32, references are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import (
    AuxHead,
    Concat,
    Depthwise,
    Grouped,
    LayerNormMlp,
    Residual,
    chain,
    image,
    rows,
)
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers.pressure import FINAL_STRENGTH, STRENGTH, Pressure
from fxprune.gated import GatedModule

Entries = list[tuple[str, Any]]
"""The entries of some parameters: a name, and what to index the parameter with."""


class Looped(nn.Module):
    """A layer that is applied twice between its own ends: its rows are made, its columns read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.loop = nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.loop(x).relu()
        x = x + self.loop(x).relu()
        return self.head(x)


def transposed() -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(3, 6, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 5, 2, bias=False),
        nn.ReLU(),
        nn.Conv2d(5, 4, 1),
    )


def row(*names: str) -> Callable[[int], Entries]:
    """Unit `i` is made by row `i` of these parameters."""
    return lambda i: [(name, i) for name in names]


def column(*names: str) -> Callable[[int], Entries]:
    """Unit `i` is made by what lies at `i` along axis 1, as in a transposed convolution."""
    return lambda i: [(name, (slice(None), i)) for name in names]


def both(*parts: Callable[[int], Entries]) -> Callable[[int], Entries]:
    return lambda i: [entry for part in parts for entry in part(i)]


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and for each group what makes a unit of it."""

    make: Callable[[], nn.Module]
    makers: dict[str, Callable[[int], Entries]]
    inputs: Callable[[], Tensor] = image


CASES = {
    "conv": Case(chain, {"0": row("0.weight", "0.bias", "1.weight", "1.bias")}),
    "residual": Case(
        Residual,
        {"stem": row("stem.weight", "outer.weight", "norm.weight", "norm.bias"), "inner": row("inner.weight")},
    ),
    "concat": Case(Concat, {"left": row("left.weight"), "right": row("right.weight")}),
    "depthwise": Case(
        Depthwise,
        {"expand": both(row("expand.weight"), lambda i: [("depth.weight", slice(2 * i, 2 * i + 2))])},
    ),
    "grouped": Case(
        # A unit is the same position in both groups: what is left must have equal groups.
        Grouped,
        {
            "expand": lambda i: [("expand.weight", [i, i + 4])],
            "grouped": lambda i: [("grouped.weight", [i, i + 6])],
        },
    ),
    "linear": Case(
        LayerNormMlp, {"make": row("make.weight", "make.bias", "norm.weight", "norm.bias")}, rows
    ),
    "transposed": Case(
        transposed,
        {"0": both(column("0.weight"), row("0.bias")), "2": column("2.weight")},
    ),
    "looped": Case(
        Looped, {"stem": row("stem.weight", "stem.bias", "loop.weight", "loop.bias")}
    ),
    "two modes": Case(
        AuxHead,
        {
            "stem.0": row("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"),
            "body": row("body.weight", "body.bias"),
            "aux.0": row("aux.0.weight", "aux.0.bias"),
        },
    ),
}  # fmt: skip


@dataclass
class Setting:
    """A gated network with random closed units, and what a reference needs to know of it."""

    case: Case
    gated: GatedModule
    closed: np.ndarray
    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def make(cls, kind: str = "conv", seed: int = 0, share: float = 0.6) -> Setting:
        case = CASES[kind]
        gated = auto_gate(case.make().float(), case.inputs().float())
        assert {group.name for group in gated.groups} == set(case.makers)
        return cls(case, gated, draw(gated, seed, share))

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.gated.named_parameters())

    def copy(self) -> dict[str, Tensor]:
        return {name: p.detach().double() for name, p in self.parameters.items()}

    def units(self) -> Iterator[tuple[Entries, float]]:
        """Yield what makes each closed unit, and its group's share of all closed units."""
        for name, at in self.gated.plan.group_slices().items():
            share = self.closed[at].sum() / self.closed.sum()
            for unit in np.flatnonzero(self.closed[at]):
                yield self.case.makers[name](int(unit)), float(share)


def draw(gated: GatedModule, seed: int, share: float = 0.6) -> np.ndarray:
    """Close random units: some and not all of every group."""
    generator = np.random.default_rng(seed)
    closed = generator.random(gated.plan.n_units) < share
    for at in gated.plan.group_slices().values():
        closed[at.start], closed[at.stop - 1] = True, False
    return closed


def norm_of(values: dict[str, Tensor], entries: Entries) -> float:
    return math.sqrt(sum(float(values[name][at].square().sum()) for name, at in entries))


def proximal(setting: Setting, strength: float) -> dict[str, Tensor]:
    """Apply the closed form to a copy of the weights: one unit, one norm over all that makes it."""
    values = setting.copy()
    for entries, share in setting.units():
        norm = norm_of(values, entries)
        for name, at in entries:
            eta = setting.rates[name]
            shrunk = max(0.0, 1 - eta * strength * share / norm) if norm else 0.0
            values[name][at] *= shrunk
    return values


def half_space(setting: Setting, before: dict[str, Tensor], strength: float) -> dict[str, Tensor]:
    """Apply the half-space step to a copy of the weights."""
    values = setting.copy()
    for entries, share in setting.units():
        norm = norm_of(before, entries)
        inner = 0.0
        for name, at in entries:
            if norm:
                pull = setting.rates[name] * strength * share / norm
                values[name][at] -= pull * before[name][at]
            inner += float((values[name][at] * before[name][at]).sum())
        if inner < 0 or not norm:
            for name, at in entries:
                values[name][at] = 0.0
    return values


def assert_weights(
    setting: Setting, expected: dict[str, Tensor], untouched: dict[str, Tensor]
) -> None:
    """Compare all weights; those that make no closed unit must be bit for bit as they were."""
    made = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in setting.parameters.items()}
    for entries, _ in setting.units():
        for name, at in entries:
            made[name][at] = True
    for name, parameter in setting.parameters.items():
        torch.testing.assert_close(
            parameter.detach().double(),
            expected[name],
            rtol=2e-6,
            atol=1e-7,
            msg=lambda m, n=name: f"{n}: {m}",
        )
        rest = ~made[name]
        assert torch.equal(parameter.detach()[rest], untouched[name][rest]), name
    assert any(bool(mask.any()) for mask in made.values())


def weights(setting: Setting) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in setting.parameters.items()}


def with_sgd(setting: Setting, kind: str, lr: float, strength: float | None) -> Pressure:
    optimizer = torch.optim.SGD(setting.gated.parameters(), lr)
    setting.rates = dict.fromkeys(setting.parameters, lr)
    pressure = Pressure(setting.gated, optimizer, kind, strength)
    pressure.close(setting.closed)
    return pressure


def norms(setting: Setting) -> list[float]:
    return [norm_of(setting.copy(), entries) for entries, _ in setting.units()]


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
