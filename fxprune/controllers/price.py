"""How thetas move: bounded steps against the slope, at a given price or along a budget.

The slope of the objective by a theta is what the structure changes in the loss plus what it costs,
``effect + nu * price``. These differ between structures by orders of magnitude, so a theta moves by

    -rate * clip(sharpness * (effect + nu * price) / (|effect| + nu * price), -1, 1)

a step against the slope whose length depends on how clear the case is, not on the structure's size:
the stationary points are those of projected gradient descent.

Under a budget nobody gives nu. In every step it is the one at which the expected cost goes where a
path says, averaged over steps: the dual variable of the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Market", "follow_budget"]

_TINY = 1e-30
_LOWEST, _HIGHEST = -25.0, 15.0  # of log nu
_HALVINGS = 40
_AVERAGING = 0.5


@dataclass(frozen=True, slots=True)
class Market:
    """What is known about the structures when thetas move.

    Attributes
    ----------
    theta, effects, prices : float64 Tensor, shape (n_units,)
        Where thetas are, what structures change in the loss (below 0 where they help), and what
        they cost.
    free : bool Tensor, shape (n_units,)
        Which thetas move.
    rate : float
        Longest step.
    sharpness : float
        See above.
    """

    theta: Tensor
    effects: Tensor
    prices: Tensor
    free: Tensor
    rate: float
    sharpness: float

    def step(self, nu: float) -> Tensor:
        """Return the step of every theta at a price, before projection."""
        pull = nu * self.prices
        balance = self.sharpness * (self.effects + pull) / (self.effects.abs() + pull + _TINY)
        return torch.where(self.free, -self.rate * balance.clamp(-1, 1), 0.0)

    def change(self, step: Tensor, slopes: Tensor) -> float:
        """Return by how much a step changes a cost with these slopes, to first order."""
        moved = (self.theta + step).clamp(0, 1) - self.theta
        return float((slopes * moved).sum())


def follow_budget(
    market: Market, slopes: Tensor, wanted: float, nu: float | None
) -> tuple[Tensor, float | None]:
    """Return the step whose cost changes as wanted, and the price it is taken at.

    Parameters
    ----------
    market : Market
    slopes : float64 Tensor, shape (n_units,)
        Of the budgeted cost by theta.
    wanted : float
        By how much that should change.
    nu : float, optional
        The price of the step before.

    Returns
    -------
    tuple of (Tensor, float or None)
        The price is None where structures leave without one. Where more would leave than wanted,
        those that leave do it more slowly.
    """
    low, high = _LOWEST, _HIGHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if market.change(market.step(math.exp(middle)), slopes) > wanted:
            low = middle
        else:
            high = middle
    if low > _LOWEST:
        before = low if nu is None else math.log(nu)
        nu = math.exp(before + _AVERAGING * (low - before))
    step = market.step(math.exp(_LOWEST) if nu is None else nu)
    falling = market.change(step.clamp_max(0), slopes)
    room = wanted - market.change(step.clamp_min(0), slopes)
    if falling < room and falling < 0:
        step = torch.where(step < 0, max(0.0, room / falling) * step, step)
    return step, nu
