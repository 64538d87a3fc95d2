"""When slopes are measured, and when thetas move: shares of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Phase", "Timing"]

Phase = Literal["warm-up", "search", "final"]

_EARLIEST, _LATEST = 0.1, 0.35
"""Shares of the run between which the search begins."""

_INFORMED = 0.7
"""Share of the structures that must seem to help for it to begin before the latest moment: before a
net has begun to learn, slopes are noise, and half of them do."""

_SEARCH = 0.25
"""Share of the run that the search takes: what it leaves has the rest of the run to train. With
0.15, resnet20 on glyphs ended 4 points lower at 10 % of the MACs (3 seeds)."""

_PACE = 0.8
"""Share of the search that the budget takes to fall, geometrically, to what was asked, and the
price to rise to what was given."""


_STILL, _CROSSING = 0.1, 4
"""Share of the search, and least number of its steps, in which in the end nothing new is learnt, so
that thetas which noise drives to and fro come to 0 or 1: enough for one to cross."""

_FIRST_PROBE = 0.05
"""Share of the run before which slopes are not worth a step: weights change too much."""

_PROBES, _OFTENEST, _RAREST = 18, 3, 20
"""Steps that only measure: so many before the search and as many in it, but no more than one step
in 3 and no less than one in 20."""

_EXPLORED = 0.3
"""Share of the open gates that explore in such a step."""


@dataclass(slots=True)
class Timing:
    """The phases of a run.

    Attributes
    ----------
    steps : int
        Weight steps of the whole run.
    began : int or None
        The number of steps after which the search began, once it has.
    """

    steps: int
    began: int | None = None

    @property
    def length(self) -> int:
        """Weight steps of the search."""
        return max(1, round(_SEARCH * self.steps))

    def phase(self, step: int) -> Phase:
        """Return the phase after so many weight steps."""
        if self.began is None:
            return "warm-up"
        return "final" if step - self.began >= self.length else "search"

    def may_begin(self, step: int, helping: float) -> bool:
        """Return whether thetas may move from the next step on.

        Parameters
        ----------
        step : int
            Weight steps done.
        helping : float
            Share of the structures that seem to help.
        """
        share = step / self.steps
        return share >= _LATEST or (share >= _EARLIEST and helping >= _INFORMED)

    def measures(self, step: int) -> bool:
        """Return whether the slopes of this step still count."""
        if self.began is None:
            return True
        return self.length - (step - self.began) >= max(_CROSSING, _STILL * self.length)

    def explored(self, step: int) -> float:
        """Return the share of the open gates that explore in the next step; above 0 it is a probe.

        See `fxprune.controllers.probes`.
        """
        if self.began is None:
            length, since = (_LATEST - _FIRST_PROBE) * self.steps, step - _FIRST_PROBE * self.steps
        else:
            length, since = self.length, step - self.began
        every = min(_RAREST, max(_OFTENEST, round(length / _PROBES)))
        due = since >= 0 and int(since) % every == 0 and self.measures(step + 1)
        return _EXPLORED if due else 0.0

    def gone(self, step: int) -> float:
        """Return how far budget or price should have come; 1 and more: they have arrived."""
        return 0.0 if self.began is None else (step - self.began) / self.length / _PACE
