"""When thetas move: from where the slopes tell something, for a share of the run."""

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

_SEARCH = 0.15
"""Share of the run that the search takes: what it leaves has the rest of the run to train."""

_PACE = 0.8
"""Share of the search that the budget takes to fall, geometrically, to what was asked, and the
price to rise to what was given."""


_STILL, _CROSSING = 0.1, 4
"""Share of the search, and least number of its steps, in which in the end nothing new is learnt, so
that thetas which noise drives to and fro come to 0 or 1: enough for one to cross."""

_SAMPLES = 15
"""So often should a structure have been seen half open when the search begins at the latest."""

_LEAST_EXPLORED, _MOST_EXPLORED = 0.02, 0.1
"""Shares of the open gates; with 0.2, short runs ended up to 15 points of accuracy lower."""


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

    @property
    def explored(self) -> float:
        """Share of the open gates that stand half open in a step, see `Thetas`."""
        needed = _SAMPLES / (_LATEST * self.steps)
        return min(_MOST_EXPLORED, max(_LEAST_EXPLORED, needed))

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

    def gone(self, step: int) -> float:
        """Return how far budget or price should have come; 1 and more: they have arrived."""
        return 0.0 if self.began is None else (step - self.began) / self.length / _PACE
