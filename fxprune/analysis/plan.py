"""The result of the analysis as plain data: groups, frozen axes, gate sites and cost terms.

Nothing here refers to graph nodes or modules, only to their names, so that a plan survives deepcopy
and pickling and fits every graph that was captured from the same model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fxprune.analysis.ids import Ids, Tie
from fxprune.analysis.trace import GraphTrace

__all__ = [
    "BranchSite",
    "ChannelGroup",
    "CostTerms",
    "FrozenAxis",
    "GateSite",
    "GroupKind",
    "GraphPlan",
    "Member",
    "StatisticGate",
    "Plan",
    "WeightGate",
]

GroupKind = Literal["channel", "head", "head_dim", "branch"]
Keep = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One axis of one parameter (or buffer): its fully qualified name and dimension."""

    fqn: str
    dim: int

    def __str__(self) -> str:
        return f"{self.fqn}[{self.dim}]"


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """A family of units with the same member axes: what a keep-mask decides on.

    Attributes
    ----------
    name : str
        Path of the module that makes the channels; of a branch, the path that the modules which go
        with it have in common.
    kind : {"channel", "head", "head_dim", "branch"}
        A branch is an operand of a residual add.
    size : int
        Number of units, each kept or removed as a whole; 1 for a branch.
    members : tuple[Member, ...]
        The parameter axes that a removed unit takes positions from. Of a branch: the first axis of
        every parameter that goes with it as a whole, or of those that it uses if all of them are
        used elsewhere too.
    """

    name: str
    kind: GroupKind
    size: int
    members: tuple[Member, ...]

    def __str__(self) -> str:
        if self.kind == "branch":
            return f"{self.name} (branch, {len(self.members)} parameters)"
        return f"{self.name} ({self.size} {self.kind} units, {len(self.members)} axes)"


@dataclass(frozen=True, slots=True)
class FrozenAxis:
    """A parameter axis with positions that may not be pruned.

    Attributes
    ----------
    member : Member
    reason : str
        Why, in words.
    count, size : int
        How many of the axis' positions are frozen, of how many.
    """

    member: Member
    reason: str
    count: int
    size: int

    def __str__(self) -> str:
        part = "" if self.count == self.size else f" ({self.count} of {self.size})"
        return f"{self.member}{part}: {self.reason}"


@dataclass(frozen=True, slots=True)
class GateSite:
    """A gate on the edges from one node to the consumers that sum over the gated axis."""

    source: str
    dim: int
    consumers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StatisticGate:
    """An operator that takes a statistic over prunable axes (`dims`, negative) of a value."""

    node: str
    source: str
    dims: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class WeightGate:
    """A gate on one axis of a weight inside the module that a node calls.

    Attributes
    ----------
    node : str
    weight : str
        Its name in that module.
    member : Member
        Its axis, under its name in the model.
    """

    node: str
    weight: str
    member: Member


@dataclass(frozen=True, slots=True)
class BranchSite:
    """A removable operand of an add: without it the other operand takes the place of the sum.

    Attributes
    ----------
    node : str
        The add.
    operand : int
        Which of the two that it adds, 0 or 1.
    branch : int
        The id of the branch; kept or not as ``plan.kept`` says.
    """

    node: str
    operand: int
    branch: int


@dataclass(frozen=True, slots=True)
class GraphPlan:
    """What one captured graph needs: its gates, its branches and the ids of its values."""

    trace: GraphTrace
    gates: tuple[GateSite, ...]
    statistics: tuple[StatisticGate, ...]
    weights: tuple[WeightGate, ...] = ()
    branches: tuple[BranchSite, ...] = ()


@dataclass(frozen=True, slots=True)
class CostTerms:
    """A sum of products of counts: ``sum over terms of factor * product over runs of kept(run)``.

    Attributes
    ----------
    factors : tuple[int, ...]
    runs : tuple[tuple[int, ...], ...]
        For each term, indices into `Plan.runs`.
    """

    factors: tuple[int, ...]
    runs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the analysis found.

    Attributes
    ----------
    groups : tuple[ChannelGroup, ...]
        Their units are numbered one group after the other.
    frozen : tuple[FrozenAxis, ...]
    units : int array, shape (n_ids, k)
        Units that each id needs, padded with the number of units.
    axes : mapping
        ``(fqn, dim)`` of every parameter and buffer axis that carries ids, to these.
    graphs : mapping
        Mode (``"eval"``, ``"train"``, or only ``"eval"`` when both are one graph) to its plan.
    runs : tuple of int arrays
        The distinct runs of ids that costs are counted over.
    macs, params : CostTerms
    shapes : mapping
        Shape of every parameter and buffer.
    ties : tuple[Tie, ...]
        Which runs of ids were tied, and by what.
    readers : frozenset of (fqn, dim)
        The parameter axes that an operator sums over: they read what other axes make.
    """

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenAxis, ...]
    units: Ids
    axes: Mapping[tuple[str, int], Ids]
    graphs: Mapping[str, GraphPlan]
    runs: tuple[Ids, ...]
    macs: CostTerms
    params: CostTerms
    shapes: Mapping[str, tuple[int, ...]]
    ties: tuple[Tie, ...]
    readers: frozenset[tuple[str, int]]

    @property
    def n_units(self) -> int:
        """Number of units of all groups."""
        return sum(group.size for group in self.groups)

    def group_slices(self) -> dict[str, slice]:
        """Return for each group the range of its units."""
        slices, start = {}, 0
        for group in self.groups:
            slices[group.name] = slice(start, start + group.size)
            start += group.size
        return slices

    def kept(self, ids: Ids, keep: Keep) -> Keep:
        """Return which positions of a run of ids a keep-vector (one bool per unit) keeps."""
        full = np.append(keep, True)
        kept: Keep = np.asarray(full[self.units[ids]].all(axis=-1))
        return kept

    def removed(self, mode: str, keep: Keep) -> tuple[BranchSite, ...]:
        """Return the branches of one graph that a keep-vector does not keep."""
        sites = self.graphs[mode].branches
        gone = ~self.kept(np.array([site.branch for site in sites], dtype=np.int64), keep)
        return tuple(site for site, out in zip(sites, gone.tolist(), strict=True) if out)

    def prunable(self, ids: Ids | None) -> bool:
        """Return whether any position of a run of ids can be removed."""
        return ids is not None and bool((self.units[ids] != self.n_units).any())

    def width(self, ids: Ids | None, full: int, keep: Keep) -> int:
        """Return how many positions of an axis are kept; `full` is its width."""
        return full if ids is None else int(self.kept(ids, keep).sum())
