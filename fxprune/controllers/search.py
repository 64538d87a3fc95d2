"""Thetas on their way: what is drawn, what is measured, and where they move.

Everything here is numbered as the units of the gated model at the moment, and follows it when it
shrinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fxprune.budget import Selection, check_budget
from fxprune.controllers.bernoulli import Thetas
from fxprune.controllers.checks import check_positive
from fxprune.controllers.complexity import Complexity, Prices
from fxprune.controllers.price import Market, follow_budget
from fxprune.controllers.resolve import blocks_of, resolve
from fxprune.controllers.slopes import Slopes
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule

__all__ = ["Aim", "Search", "aim_of"]

_STEPS_ACROSS = 12
"""A theta can go from 0 to 1 so many times during a search."""

_LONGEST = 0.25
"""No theta moves by more in a step: prices are those of where it came from."""

_PATIENT, _DECISIVE, _FINAL = 4.0, 40.0, 1e9
"""Sharpness of the steps: on the way; once budget or price have arrived, when thetas that hesitate
go to the end that their slope points at; and when nothing new is learnt."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a search is after.

    Attributes
    ----------
    resource : {"macs", "params"}
        What the budget is of; without one, what is reported.
    target : float or None
        Share of it to keep.
    nu : float or None
        The price, where there is no target.
    """

    resource: Literal["macs", "params"]
    target: float | None
    nu: float | None


def aim_of(
    gated: GatedModule,
    term: Complexity,
    nu: float | None,
    macs: float | None,
    params: float | None,
    round_to: int,
) -> Aim:
    """Return what a search is after, given one of a price and two budgets.

    Raises
    ------
    ConfigError
        If not exactly one is given, or the price is no number above 0.
    BudgetError
        If the budget is out of range, or cannot be reached with what may leave.
    """
    if sum(value is not None for value in (nu, macs, params)) != 1:
        raise ConfigError(
            "Give exactly one of 'nu', 'macs' and 'params'.",
            seen=f"nu={nu!r}, macs={macs!r}, params={params!r}",
            hint="macs=0.5 keeps half of the whole model's multiply-accumulates; nu is what the "
            "dense network's complexity weighs against the loss",
        )
    if nu is not None:
        check_positive("nu", nu)
        return Aim("macs" if term.alpha >= 0.5 else "params", None, float(nu))
    resource, target = check_budget(
        gated.plan,
        gated.cost_of,
        macs=macs,
        params=params,
        round_to=round_to,
        dense=gated.dense_cost,
        stay=(term.weights() == 0).numpy(),
    )
    return Aim(resource, target, None)


class Search:
    """The thetas of a gated model and what is known about them.

    Parameters
    ----------
    gated : GatedModule
    term : Complexity
    aim : Aim
    round_to : int

    Attributes
    ----------
    thetas : Thetas
    nu : float or None
        The price in use; None before there is one.
    units : int64 Tensor, shape (n_units,)
        The number of each unit in the model before it was shrunk.
    """

    def __init__(self, gated: GatedModule, term: Complexity, aim: Aim, round_to: int) -> None:
        self._gated, self._term, self._aim, self._round_to = gated, term, aim, round_to
        self.nu: float | None = None
        self._whole = gated.plan.n_units
        self.units = torch.arange(self._whole)
        self._begin()

    def _begin(self) -> None:
        """Begin anew with the units that there are."""
        blocks, fixed = blocks_of(self._gated, self._round_to), self._term.weights() == 0
        self.thetas = Thetas(blocks, fixed)
        self._slopes = Slopes(_group_numbers(self._gated))

    def draw(self, generator: torch.Generator, explored: float) -> Tensor:
        """Return one sample of all gates, float64, shape (n_units,); see `Thetas.draw`.

        As many numbers are drawn as there were units, so that a model that has shrunk gets the
        gates that it would have got.
        """
        uniform = torch.rand(self._whole, generator=generator, dtype=torch.float64)
        return self.thetas.draw(uniform[self.units], explored)

    @property
    def helping(self) -> float:
        """Share of the structures seen to help: half of them where slopes are only noise."""
        return self._slopes.helping(self.thetas.free)

    def measure(self, slopes: Tensor, sample: Tensor) -> None:
        """Take note of the slopes of a loss by the gates of a sample, float64, (n_units,)."""
        self._slopes.add(slopes, sample, self.thetas.free)

    def move(self, gone: float, steps: int, last: bool = False) -> float:
        """Let thetas take a step.

        Parameters
        ----------
        gone : float
            How far budget or price have come; 1 and more: they have arrived.
        steps : int
            Length of the whole search.
        last : bool
            Whether `measure` is not called any more.

        Returns
        -------
        float
            The expected share of the resource afterwards.
        """
        effects, prices = self._effects(), self._term.at(self.thetas.value)
        market = Market(
            self.thetas.value,
            effects,
            self._term.mixed(prices),
            self.thetas.free,
            rate=min(_LONGEST, _STEPS_ACROSS / steps),
            sharpness=_FINAL if last else _DECISIVE if gone >= 1 else _PATIENT,
        )
        aim = self._aim
        if aim.target is None:
            self.nu = (aim.nu or 0.0) * min(1.0, gone)
            step = market.step(self.nu)
        else:
            share, slopes = prices.of(aim.resource)
            wanted = aim.target ** min(1.0, gone) - share
            step, self.nu = follow_budget(market, slopes, wanted, self.nu)
        step = torch.where(_useless(prices), -1.0, step)
        before = self.thetas.state_dict()
        self.thetas.move(step, -effects)
        if aim.target is not None and self._left() < aim.target:
            # What is gone cannot come back: too much would be.
            self.thetas.load_state_dict(before)
            self.thetas.move(step, -effects, remove=False)
        after, _ = self._term.at(self.thetas.value).of(aim.resource)
        return after

    def _left(self) -> float:
        """Return the share of the resource that everything needs which is not removed."""
        cost = self._gated.cost_of((~self.thetas.removed).numpy())
        share: float = getattr(cost, self._aim.resource) / getattr(
            self._term.dense, self._aim.resource
        )
        return share

    def resolve(self) -> Selection:
        """Set hard masks, see `fxprune.controllers.resolve.resolve`; thetas are these then."""
        aim = self._aim
        chosen = resolve(
            self._gated,
            self.thetas,
            -self._effects(),
            aim.resource,
            aim.target,
            self._round_to,
        )
        self.thetas.value = torch.from_numpy(chosen.keep).double()
        return chosen

    def _effects(self) -> Tensor:
        return self._slopes.effects(~self.thetas.removed)

    def take(self, kept: Tensor) -> None:
        """Go on with some of the units, by their numbers until now; the model has these only."""
        self.units = self.units[kept]
        self.thetas.take(kept, blocks_of(self._gated, self._round_to))
        self._slopes.take(kept, _group_numbers(self._gated))

    # -- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes."""
        return {
            "units": self.units.clone(),
            "thetas": self.thetas.state_dict(),
            "slopes": self._slopes.state_dict(),
            "nu": self.nu,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned of a model of the same size."""
        self._begin()
        self.units = torch.zeros(self._gated.plan.n_units, dtype=torch.int64).copy_(state["units"])
        self.thetas.load_state_dict(state["thetas"])
        self._slopes.load_state_dict(state["slopes"])
        self.nu = None if state["nu"] is None else float(state["nu"])


def _useless(prices: Prices) -> Tensor:
    """Return which units are only in what has been removed: they cost nothing any more."""
    return (prices.macs_slopes <= 0) & (prices.params_slopes <= 0)


def _group_numbers(gated: GatedModule) -> Tensor:
    sizes = torch.tensor([group.size for group in gated.groups])
    return torch.arange(len(sizes)).repeat_interleave(sizes)
