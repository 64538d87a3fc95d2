"""Plain references of the projections, unit by unit, over weights listed by hand.

Networks are float32, references are computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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
from fxprune.controllers.pressure import Pressure
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
