"""The budget solver: the keep-vector that keeps the best units and costs what was asked.

Units leave in the order of their scores, in blocks of `round_to` channels, never the last block of
a group, unless it is a branch. The cost falls with every block, so a bisection finds where the
ranking crosses the budget. Where one block steps over it, the states around are searched best first
until one is near enough.
Cost is that of the whole model, prunable or not.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fxprune.analysis.plan import ChannelGroup, Keep, Plan
from fxprune.cost import Cost
from fxprune.errors import BudgetError, ConfigError
from fxprune.importance import Scores
from fxprune.settings import check_round_to

__all__ = ["TOLERANCE", "Selection", "block_size", "check_budget", "solve"]

TOLERANCE = 0.01
"""A budget is met when the cost is within this share of it."""

_TRIES = 3000

State = tuple[int, ...]
"""How many blocks each group has lost."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What the solver chose.

    Attributes
    ----------
    resource : {"macs", "params"}
    target : float or None
        Share of the dense model's cost that was asked for, if any was.
    reached : float
        Share of it that is kept.
    met : bool
        Whether `reached` is within 1 % of `target`; if not, nothing nearer was found with these
        block sizes.
    keep : bool array, shape (n_units,)
    cost : Cost
    """

    resource: Literal["macs", "params"]
    target: float | None
    reached: float
    met: bool
    keep: Keep
    cost: Cost

    @classmethod
    def of(
        cls,
        resource: Literal["macs", "params"],
        target: float | None,
        reached: float,
        keep: Keep,
        cost: Cost,
    ) -> Selection:
        """Judge whether what was reached meets the target; without one, it does."""
        met = target is None or abs(reached - target) <= TOLERANCE * target
        return cls(resource, target, reached, met, keep, cost)

    def summary(self) -> dict[str, str | float | bool | None]:
        """Return what was asked and reached, as plain values."""
        return {
            "resource": self.resource,
            "target": self.target,
            "reached": self.reached,
            "met": self.met,
        }

    def __str__(self) -> str:
        if self.target is None:
            return f"{self.resource}: kept {self.reached:.2%} of the dense model"
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
    dense: Cost | None = None,
    stay: Keep | None = None,
    leave: Keep | None = None,
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
    dense : Cost, optional
        Of the dense model, where that is more than the cost of keeping all units: some have been
        removed already.
    stay, leave : bool array, shape (n_units,), optional
        Units that must be kept, and that must not, whatever their scores; in whole blocks.

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
    ladders = _Ladders(plan, scores, round_to, stay, leave)
    share = _share_of(plan, cost_of, resource, dense)
    _check_reachable(ladders, share, resource, target, round_to)
    keep = _Search(ladders, share, target).run()
    reached = share(keep)
    return Selection.of(resource, target, reached, keep, cost_of(keep))


def check_budget(
    plan: Plan,
    cost_of: Callable[[Keep], Cost],
    *,
    macs: float | None = None,
    params: float | None = None,
    round_to: int = 1,
    dense: Cost | None = None,
    stay: Keep | None = None,
) -> tuple[Literal["macs", "params"], float]:
    """Return the resource and the share of it that a budget allows, if it can be reached at all.

    Takes and raises what `solve` does.
    """
    resource, target = _target(macs, params)
    check_round_to(round_to)
    ladders = _Ladders(plan, np.zeros(plan.n_units), round_to, stay)
    share = _share_of(plan, cost_of, resource, dense)
    _check_reachable(ladders, share, resource, target, round_to)
    return resource, target


def _share_of(
    plan: Plan, cost_of: Callable[[Keep], Cost], resource: str, dense: Cost | None
) -> Callable[[Keep], float]:
    """Return the function from a keep-vector to the share of the dense model's cost it keeps."""
    whole = cost_of(np.ones(plan.n_units, dtype=bool)) if dense is None else dense
    total: int = getattr(whole, resource)
    return lambda keep: float(getattr(cost_of(keep), resource)) / total


def _check_reachable(
    ladders: _Ladders,
    share: Callable[[Keep], float],
    resource: str,
    target: float,
    round_to: int,
) -> None:
    least = share(ladders.keep(ladders.after(len(ladders.ranking))))
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


class _Ladders:
    """Per group, the blocks of units in the order in which they leave; and all of them ranked.

    A group loses them from the worst on, so that
    its width stays a multiple of the block; the last block stays, except that of a branch.
    """

    def __init__(
        self,
        plan: Plan,
        scores: Scores,
        round_to: int,
        stay: Keep | None = None,
        leave: Keep | None = None,
    ) -> None:
        self._n_units = plan.n_units
        self._blocks: list[list[npt.NDArray[np.int64]]] = []
        self._least: list[int] = []
        ranked: list[tuple[float, int]] = []
        if stay is not None:
            scores = np.where(stay, np.inf, scores)
        if leave is not None:
            scores = np.where(leave, -np.inf, scores)
        slices = plan.group_slices().values()
        for number, (group, at) in enumerate(zip(plan.groups, slices, strict=True)):
            order = at.start + np.argsort(-scores[at], kind="stable")
            step = block_size(plan, group, round_to)
            least = 0 if group.kind == "branch" else step
            least = max(least, -(-int(np.isposinf(scores[at]).sum()) // step) * step)
            starts = reversed(range(least, group.size, step))
            blocks = [order[start : start + step] for start in starts]
            gone = sum(bool(np.isneginf(scores[block]).all()) for block in blocks)
            self._blocks.append(blocks)
            self._least.append(gone)
            ranked += [(float(scores[block].mean()), number) for block in blocks[gone:]]
        self.ranking = [number for _, number in sorted(ranked)]

    def after(self, count: int) -> State:
        """Return the state after the first `count` blocks of the ranking have left."""
        lost = np.bincount(self.ranking[:count], minlength=len(self._blocks))
        return tuple((lost + np.array(self._least, dtype=np.int64)).tolist())

    def keep(self, state: State) -> Keep:
        """Return the keep-vector of a state."""
        keep = np.ones(self._n_units, dtype=bool)
        for blocks, lost in zip(self._blocks, state, strict=True):
            for block in blocks[:lost]:
                keep[block] = False
        return keep

    def neighbours(self, state: State) -> Iterator[State]:
        """Yield the states in which one group has lost one block more, or one less."""
        for number, blocks in enumerate(self._blocks):
            for lost in (state[number] + 1, state[number] - 1):
                if self._least[number] <= lost <= len(blocks):
                    yield (*state[:number], lost, *state[number + 1 :])


def block_size(plan: Plan, group: ChannelGroup, round_to: int) -> int:
    """Return how many units make `round_to` channels.

    A unit of a grouped convolution is several channels; a branch is none.
    """
    if group.kind == "branch":
        return 1
    lead = group.members[0]
    ids = plan.axes[lead.fqn, lead.dim]
    unit = plan.group_slices()[group.name].start
    channels = int((plan.units[ids] == unit).any(axis=-1).sum())
    return round_to // math.gcd(round_to, max(channels, 1))


class _Search:
    """Looks for the state whose cost is nearest to the target, starting from the ranking.

    Best first: of all states seen, the neighbours of the nearest are tried next, one block more or
    less in one group. That leads out of a state all of whose neighbours are further away.
    """

    def __init__(self, ladders: _Ladders, share: Callable[[Keep], float], target: float) -> None:
        self._ladders = ladders
        self._share = share
        self._target = target
        self._seen: set[State] = set()
        self._waiting: list[tuple[float, int, State]] = []
        self._best: State = ladders.after(0)
        self._gap = math.inf

    def run(self) -> Keep:
        """Return the keep-vector of the nearest state found."""
        self._follow_ranking()
        while self._waiting and not self._good_enough():
            _, _, state = heapq.heappop(self._waiting)
            self._try(self._ladders.neighbours(state))
        return self._ladders.keep(self._best)

    def _over(self, state: State) -> bool:
        return self._share(self._ladders.keep(state)) >= self._target

    def _good_enough(self) -> bool:
        return self._gap <= TOLERANCE * self._target or len(self._seen) >= _TRIES

    def _follow_ranking(self) -> None:
        """Find by bisection where the ranking crosses the target, and try both sides."""
        low, high = 0, len(self._ladders.ranking)
        while low < high:
            middle = (low + high + 1) // 2
            if self._over(self._ladders.after(middle)):
                low = middle
            else:
                high = middle - 1
        last = len(self._ladders.ranking)
        self._try(self._ladders.after(min(count, last)) for count in (low, low + 1))

    def _try(self, states: Iterable[State]) -> None:
        """Look at states not seen before; stop at the first that is near enough."""
        for state in states:
            if state in self._seen:
                continue
            self._seen.add(state)
            gap = abs(self._share(self._ladders.keep(state)) - self._target)
            # of states equally near, the one found first
            heapq.heappush(self._waiting, (gap, len(self._seen), state))
            if gap < self._gap:
                self._best, self._gap = state, gap
            if self._good_enough():
                return
