"""What every structure is worth to the task, from the slopes of the loss by sampled gates.

The expected loss is linear in each ``theta``, and its slope is what the structure changes::

    E[loss | xi = 1] - E[loss | xi = 0]

of which one backward pass per step tells only ``d = d loss / d xi`` at the xi that was drawn. Two
rules make that difference of such slopes: the trapezoidal and the midpoint rule over the way from 0
to 1,

    (E[d | xi = 1] + E[d | xi = 0]) / 2    and    E[d | xi = 1/2].

Both are exact for every loss that is at most quadratic in this one gate, however it depends on all
the others, and else off by a twelfth and a 24th of its third derivative at most. Where the weights
are trained, ``E[d | xi = 1]`` is about 0, because a weight and its gate scale the same value:
slopes at open gates alone, or a plain mean of ``d``, would leave every theta between 0 and 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune.controllers.bernoulli import HALF

__all__ = ["Slopes"]

_GATES = 0.0, HALF, 1.0
_WINDOWS = 10, 10, 20
"""Samples that a mean remembers at closed, half open and open gates: weights move on, and all but
open gates are seen less often."""

_PRIOR = 2
"""How many samples the mean of a unit's group counts for, in place of those not yet seen."""


class Slopes:
    """Running means of the slopes at closed, half open and open gates, for each structure.

    Parameters
    ----------
    groups : int64 Tensor, shape (n_units,)
        The number of each unit's group.
    windows : tuple of int
        How many samples are remembered at closed, half open and open gates.
    """

    def __init__(self, groups: Tensor, windows: tuple[int, int, int] = _WINDOWS) -> None:
        self._groups = groups
        self._windows = windows
        shape = len(_GATES), len(groups)
        self._means = torch.zeros(shape, dtype=torch.float64)
        self._seen = torch.zeros(shape, dtype=torch.float64)

    def add(self, slopes: Tensor, sample: Tensor, counted: Tensor) -> None:
        """Take note of one step.

        Parameters
        ----------
        slopes : float64 Tensor, shape (n_units,)
        sample : float64 Tensor, shape (n_units,)
            The gates they were computed with: 0, 1/2 or 1.
        counted : bool Tensor, shape (n_units,)
            Which units' slopes to take note of.
        """
        for at, (gate, window) in enumerate(zip(_GATES, self._windows, strict=True)):
            hit = counted & (sample == gate)
            seen = (self._seen[at] + 1).clamp_max(window)
            moved = self._means[at] + (slopes - self._means[at]) / seen
            self._seen[at] = torch.where(hit, seen, self._seen[at])
            self._means[at] = torch.where(hit, moved, self._means[at])

    def effects(self, alive: Tensor | None = None) -> Tensor:
        """Return how much the loss changes by each structure, shape (n_units,); below 0 it helps.

        Gates that are not open are rare: until there are enough samples of a unit, its group's mean
        counts, that of the units which are `alive`, a bool Tensor, if it is given.
        """
        (closed, half, opened), (n_closed, n_half, _) = self._means, self._seen
        seen = n_closed + n_half
        own = (n_closed * (closed + opened) / 2 + n_half * half) / seen.clamp_min(1)
        telling = seen if alive is None else torch.where(alive, seen, 0.0)
        n = int(self._groups[-1]) + 1 if len(self._groups) else 0
        zeros = own.new_zeros(n)
        total = zeros.index_add(0, self._groups, own * telling)
        mean = total / zeros.index_add(0, self._groups, telling).clamp_min(1)
        effects: Tensor = (own * telling + _PRIOR * mean[self._groups]) / (telling + _PRIOR)
        return effects

    def helping(self, which: Tensor) -> float:
        """Return the share of some structures, given as a bool Tensor, that seem to help."""
        chosen = self.effects()[which]
        return float((chosen < 0).double().mean()) if len(chosen) else 0.0

    def take(self, kept: Tensor, groups: Tensor) -> None:
        """Forget all but some units; `groups` numbers the groups of these."""
        self._groups = groups
        self._means, self._seen = self._means[:, kept], self._seen[:, kept]

    def state_dict(self) -> dict[str, Tensor]:
        """Return what is remembered."""
        return {"means": self._means.clone(), "seen": self._seen.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._means, self._seen = (_checked(state[k], self._means) for k in ("means", "seen"))


def _checked(value: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like).copy_(value)
