"""The budget solver: the keep-vector that keeps the best units and costs what was asked.

Units leave in the order of their scores, in blocks of `round_to` channels, never the last block of
a group. The cost falls with every block, so a binary search finds where the ranking crosses the
budget; where one block steps over it, later and cheaper blocks of the ranking fill the gap. Cost is
that of the whole model, prunable or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fxprune.analysis.plan import ChannelGroup, Keep, Plan
from fxprune.cost import Cost
from fxprune.errors import BudgetError, ConfigError
from fxprune.importance import Scores
from fxprune.settings import check_round_to

__all__ = ["TOLERANCE", "Selection", "solve"]

TOLERANCE = 0.01
"""A budget is met when the cost is within this share of it."""

_FILL_TRIES = 2000


@dataclass(frozen=True, slots=True)
class Selection:
    """What the solver chose.

    Attributes
    ----------
    resource : {"macs", "params"}
    target, reached : float
        Share of the dense model's cost.
    met : bool
        Whether `reached` is within 1 % of `target`; if not, nothing nearer was found with these
        block sizes.
    keep : bool array, shape (n_units,)
    cost : Cost
    """

    resource: Literal["macs", "params"]
    target: float
    reached: float
    met: bool
    keep: Keep
    cost: Cost

    def summary(self) -> dict[str, str | float | bool]:
        """Return what was asked and reached, as plain values."""
        return {
            "resource": self.resource,
            "target": self.target,
            "reached": self.reached,
            "met": self.met,
        }

    def __str__(self) -> str:
        word = "met" if self.met else "nearest reachable"
        asked = f"asked {self.target:.2%} of the dense model"
        return f"{self.resource}: {asked}, kept {self.reached:.2%} ({word})"


def solve(
    plan: Plan,
    cost_of: Callable[[Keep], Cost],
    scores: Scores,
    *,
    macs: float | None = None,
    params: float | None = None,
    round_to: int = 1,
) -> Selection:
    """Choose the units to keep.

    Parameters
    ----------
    plan : Plan
    cost_of : callable
        Exact cost of a keep-vector.
    scores : float array, shape (n_units,)
        Higher is kept longer.
    macs, params : float in (0, 1]
        Share of the dense model's cost to keep; give one of the two.
    round_to : int
        Widths stay multiples of this where a group is at least that wide.

    Raises
    ------
    ConfigError
        If both or neither budget is given, or `round_to` is not a positive integer.
    BudgetError
        If the budget is outside (0, 1] or below what one block per group costs; the message gives
        that least share.
    """
    resource, target = _target(macs, params)
    check_round_to(round_to)
    blocks = _blocks(plan, scores, round_to)
    dense: int = getattr(cost_of(np.ones(plan.n_units, dtype=bool)), resource)

    def share(keep: Keep) -> float:
        return float(getattr(cost_of(keep), resource)) / dense

    least = share(_without(plan.n_units, blocks))
    if least > target * (1 + TOLERANCE):
        raise BudgetError(
            f"No keep-mask reaches {resource}={target:g}.",
            seen=f"the least that can be reached is {least:.4f} of the dense model",
            hint=f"ask for at least {resource}={math.ceil(least * 1e4) / 1e4}"
            + (
                ", or lower round_to"
                if round_to > 1
                else "; fxprune.explain says what is not prunable"
            ),
        )
    keep = _search(plan.n_units, blocks, share, target)
    reached = share(keep)
    met = abs(reached - target) <= TOLERANCE * target
    return Selection(resource, target, reached, met, keep, cost_of(keep))


def _target(macs: float | None, params: float | None) -> tuple[Literal["macs", "params"], float]:
    if (macs is None) == (params is None):
        raise ConfigError(
            "Give exactly one of 'macs' and 'params'.",
            seen=f"macs={macs!r}, params={params!r}",
            hint="macs=0.5 keeps half of the whole model's multiply-accumulates",
        )
    name: Literal["macs", "params"] = "params" if macs is None else "macs"
    value = params if macs is None else macs
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise BudgetError(
            f"The {name!r} parameter must be a share in (0, 1]. Got {value!r} instead.",
            hint=f"{name}=0.5 keeps half of the whole model's {name}",
        )
    return name, float(value)


def _blocks(plan: Plan, scores: Scores, round_to: int) -> list[npt.NDArray[np.int64]]:
    """Return blocks of units in the order in which they leave.

    The last block of each group is not among them.
    """
    found: list[tuple[float, int, npt.NDArray[np.int64]]] = []
    for number, (group, at) in enumerate(
        zip(plan.groups, plan.group_slices().values(), strict=True)
    ):
        order = at.start + np.argsort(-scores[at], kind="stable")
        step = _block_size(plan, group, round_to)
        for start in range(step, group.size, step):
            block = order[start : start + step]
            found.append((float(scores[block].mean()), number, block))
    found.sort(key=lambda item: (item[0], item[1]))
    return [block for _, _, block in found]


def _block_size(plan: Plan, group: ChannelGroup, round_to: int) -> int:
    """Return how many units make `round_to` channels.

    A unit of a grouped convolution is several channels.
    """
    lead = group.members[0]
    ids = plan.axes[lead.fqn, lead.dim]
    unit = plan.group_slices()[group.name].start
    channels = int((plan.units[ids] == unit).any(axis=-1).sum())
    return round_to // math.gcd(round_to, max(channels, 1))


def _without(n_units: int, blocks: list[npt.NDArray[np.int64]]) -> Keep:
    keep = np.ones(n_units, dtype=bool)
    for block in blocks:
        keep[block] = False
    return keep


def _search(
    n_units: int, blocks: list[npt.NDArray[np.int64]], share: Callable[[Keep], float], target: float
) -> Keep:
    low, high = (
        0,
        len(blocks),
    )  # share at `low` is at least the target; at `high + 1` it is below, or there is none
    while low < high:
        middle = (low + high + 1) // 2
        if share(_without(n_units, blocks[:middle])) >= target:
            low = middle
        else:
            high = middle - 1
    keep = _without(n_units, blocks[:low])
    best, best_gap = keep, abs(share(keep) - target)
    if low < len(blocks):
        beyond = _without(n_units, blocks[: low + 1])
        gap = abs(share(beyond) - target)
        if gap < best_gap:
            best, best_gap = beyond, gap
    if best_gap <= TOLERANCE * target:
        return best
    return _fill(keep, blocks[low:], share, target, best, best_gap)


def _fill(
    keep: Keep,
    rest: list[npt.NDArray[np.int64]],
    share: Callable[[Keep], float],
    target: float,
    best: Keep,
    best_gap: float,
) -> Keep:
    """Remove blocks further down the ranking as long as they do not step over the target."""
    current = keep.copy()
    for block in rest[:_FILL_TRIES]:
        trial = current.copy()
        trial[block] = False
        reached = share(trial)
        gap = abs(reached - target)
        if gap < best_gap:
            best, best_gap = trial, gap
        if best_gap <= TOLERANCE * target:
            break
        if reached >= target:
            current = trial
    return best
