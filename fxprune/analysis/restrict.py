"""The plan of what is left of a model when units have been cut out of it.

A plan is plain data about ids, so nothing is analysed again: the ids that need a removed unit leave
every run, and the units that stay are numbered anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fxprune.analysis.axes import TensorIds
from fxprune.analysis.ids import Ids, Tie
from fxprune.analysis.plan import ChannelGroup, FrozenAxis, GraphPlan, Keep, Member, Plan
from fxprune.analysis.trace import GraphTrace, NodeIds

__all__ = ["restricted"]


def restricted(plan: Plan, keep: Keep) -> Plan:
    """Return the plan of a model from which units have been removed.

    Parameters
    ----------
    plan : Plan
    keep : bool array, shape (n_units,)
        False for the removed ones.

    Returns
    -------
    Plan
        Ids keep their numbers, units are numbered anew, in order. Groups without a unit are gone.

    Notes
    -----
    Of what a walk over a graph saw, its traces keep what gates and tensors need. Arguments and
    look-ups, which tell how to rewrite the sizes written into the *captured* graph, stay in the
    plan that was made of that graph, see `fxprune.origin`.
    """
    return _Restriction(plan, keep).plan()


@dataclass(slots=True)
class _Restriction:
    """One plan and what stays of its ids."""

    old: Plan
    keep: Keep

    def plan(self) -> Plan:
        old = self.old
        return replace(
            old,
            groups=self._groups(),
            frozen=tuple(self._frozen()),
            units=self._units(),
            axes={axis: self._left(ids) for axis, ids in old.axes.items()},
            graphs={key: self._graph(graph) for key, graph in old.graphs.items()},
            runs=tuple(self._left(ids) for ids in old.runs),
            shapes={name: self._shape(name, shape) for name, shape in old.shapes.items()},
            ties=tuple(self._ties(old.ties)),
        )

    def _stays(self, ids: Ids) -> npt.NDArray[np.bool_]:
        return self.old.kept(ids, self.keep)

    def _left(self, ids: Ids) -> Ids:
        return ids[self._stays(ids)]

    def _groups(self) -> tuple[ChannelGroup, ...]:
        groups = []
        for group, at in zip(self.old.groups, self.old.group_slices().values(), strict=True):
            kept = np.flatnonzero(self.keep[at]) + at.start
            members = tuple(m for m in group.members if self._needs(m, kept))
            if len(kept):
                groups.append(replace(group, size=len(kept), members=members or group.members))
        return tuple(groups)

    def _needs(self, member: Member, units: Ids) -> bool:
        """Return whether any position that is left of an axis needs one of some units.

        Those that also needed a unit of another group may all be gone.
        """
        ids = self.old.axes.get((member.fqn, member.dim))
        return ids is not None and bool(np.isin(self.old.units[self._left(ids)], units).any())

    def _units(self) -> Ids:
        """Return the table of units in new numbers; the rows of removed ids mean nothing."""
        numbers = np.full(len(self.keep) + 1, int(self.keep.sum()))
        numbers[:-1][self.keep] = np.arange(numbers[-1])
        units: Ids = numbers[self.old.units]
        return units

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = (self.old.axes.get((name, dim)) for dim in range(len(shape)))
        pairs = zip(axes, shape, strict=True)
        return tuple(self.old.width(ids, full, self.keep) for ids, full in pairs)

    def _frozen(self) -> Iterable[FrozenAxis]:
        for axis in self.old.frozen:
            ids = self.old.axes.get((axis.member.fqn, axis.member.dim))
            yield replace(axis, size=self.old.width(ids, axis.size, self.keep))

    def _ties(self, ties: Iterable[Tie]) -> Iterable[Tie]:
        for tie in ties:
            stays = self._stays(tie.a) & self._stays(tie.b)
            if stays.any():
                yield Tie(tie.a[stays], tie.b[stays], tie.where)

    # -- graphs
    def _graph(self, graph: GraphPlan) -> GraphPlan:
        trace = graph.trace
        values = {name: self._values(value) for name, value in trace.values.items()}
        small = GraphTrace(values=values, storages=trace.storages, writers=trace.writers)
        return replace(graph, trace=small)

    def _values(self, values: NodeIds) -> NodeIds:
        return tuple((self._sizes(shape, ids), self._axes(ids)) for shape, ids in values)

    def _sizes(self, shape: tuple[int, ...], ids: TensorIds) -> tuple[int, ...]:
        pairs = zip(ids, shape, strict=True)
        return tuple(self.old.width(axis, full, self.keep) for axis, full in pairs)

    def _axes(self, ids: TensorIds) -> TensorIds:
        return tuple(None if axis is None else self._left(axis) for axis in ids)
