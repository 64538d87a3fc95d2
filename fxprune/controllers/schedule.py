"""When a run searches, projects and trains what is left: fractions of its length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fxprune.errors import ConfigError

__all__ = ["PAPER_EVERY", "Phase", "Schedule"]

Phase = Literal["warm-up", "search", "projection", "final"]

PAPER_EVERY = 20
"""Weight steps per controller step in Auto-Train-Once's runs of 100 000 steps and more."""

_LONG_RUN = 20_000  # weight steps; the paper's runs are several times as long
_CONTROLLER_STEPS = 150
_FULL_RATE, _FULL_RATE_STEPS = 1e-3, 4000  # what a short run's rate is scaled from
_LARGEST_RATE = 1e-2


@dataclass(frozen=True, slots=True)
class Schedule:
    """The phases of a run.

    Parameters
    ----------
    search : float
        Share of the run after which the controller starts to learn; gates are open.
    projection : float
        Share after which units that the controller would close are driven to zero.
    final : float
        Share after which masks are fixed and hard.
    pace : float
        Share of the search that the target takes to fall, geometrically, from the dense model to
        what was asked. 0 asks for all of it at once: in a long run the controller's own rate makes
        the way gradual, in a short one a jump would leave a net too small to learn from.

    Raises
    ------
    ConfigError
        Unless ``0 <= search <= projection <= final < 1``, ``search < final`` and ``0 <= pace <=
        1``.

    References
    ----------
    .. [1] Wu et al., "Auto-Train-Once", CVPR 2024, section 4.1 (10 % warm-up of the controller,
    projection after 20 %, masks fixed after 50 %).
    """

    search: float = 0.1
    projection: float = 0.2
    final: float = 0.5
    pace: float = 0.0

    @classmethod
    def for_run(cls, steps: int) -> Schedule:
        """Return the paper's schedule for a run as long as the paper's, another for a short one.

        Short is where a controller step in 20 weight steps would be too few for it to learn. Its
        search then lasts longer and its target is paced.
        """
        if steps >= _LONG_RUN:
            return cls()
        return cls(search=0.1, projection=0.4, final=0.7, pace=0.9)

    def __post_init__(self) -> None:
        marks = (self.search, self.projection, self.final, self.pace)
        numbers = all(isinstance(m, (int, float)) and not isinstance(m, bool) for m in marks)
        if not numbers or not (
            0 <= self.search <= self.projection <= self.final < 1
            and self.search < self.final
            and 0 <= self.pace <= 1
        ):
            raise ConfigError(
                "The phases of a schedule must be shares of the run, in order.",
                seen=f"search={self.search!r}, projection={self.projection!r}, "
                f"final={self.final!r}, pace={self.pace!r}",
                hint="for example Schedule(search=0.1, projection=0.2, final=0.5)",
            )

    def start(self, phase: Phase, steps: int) -> int:
        """Return the number of weight steps after which a phase begins, in a run of `steps`."""
        shares = {
            "warm-up": 0.0,
            "search": self.search,
            "projection": self.projection,
            "final": self.final,
        }
        return round(shares[phase] * steps)

    def phase(self, step: int, steps: int) -> Phase:
        """Return the phase after `step` weight steps of `steps`."""
        for phase in ("final", "projection", "search"):
            if step >= self.start(phase, steps):
                return phase
        return "warm-up"

    def target(self, step: int, steps: int, target: float) -> float:
        """Return the share of the resource to aim at after `step` weight steps of `steps`."""
        length = self.pace * self._window(steps)
        gone = step - self.start("search", steps)
        return float(target ** min(1.0, max(0.0, gone / length))) if length else target

    def every(self, steps: int) -> int:
        """Return how many weight steps to take per controller step.

        The paper's 20 where the run is long enough; fewer where the controller would not learn.
        """
        return max(1, min(PAPER_EVERY, self._window(steps) // _CONTROLLER_STEPS))

    def rate(self, steps: int, every: int) -> float:
        """Return the controller's learning rate: the paper's 1e-3, more where steps are few."""
        if steps >= _LONG_RUN:
            return _FULL_RATE
        taken = max(1, self._window(steps) // every)
        return min(_LARGEST_RATE, max(_FULL_RATE, _FULL_RATE * _FULL_RATE_STEPS / taken))

    def _window(self, steps: int) -> int:
        """Return the number of weight steps during which the controller learns."""
        return self.start("final", steps) - self.start("search", steps)
