"""The plan of what is left of a model when units have been cut out of it.

A plan is plain data about ids, so nothing is analysed again: the ids that need a removed unit leave
every run, and the units that stay are numbered anew. Where branches were removed, nodes and tensors
are gone as well, and groups that nothing has a position of any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fxprune.analysis.axes import TensorIds
from fxprune.analysis.ids import Ids, Tie
from fxprune.analysis.plan import ChannelGroup, FrozenAxis, GateSite, GraphPlan, Keep, Member, Plan
from fxprune.analysis.trace import GraphTrace, NodeIds

__all__ = ["GraphRest", "restricted"]


@dataclass(frozen=True, slots=True)
class GraphRest:
    """What removed branches leave of a graph.

    Attributes
    ----------
    nodes : frozenset of str
        The nodes that are left.
    instead : mapping of str to str
        By sum with a removed operand: the node that its readers read now.
    """

    nodes: frozenset[str]
    instead: Mapping[str, str]

    def source(self, name: str) -> str:
        """Return the node that is now read where a node was."""
        while name not in self.nodes and name in self.instead:
            name = self.instead[name]
        return name


def restricted(
    plan: Plan,
    keep: Keep,
    rests: Mapping[str, GraphRest] | None = None,
    gone: frozenset[str] = frozenset(),
) -> tuple[Plan, Ids]:
    """Return the plan of a model from which units have been removed.

    Parameters
    ----------
    plan : Plan
    keep : bool array, shape (n_units,)
        False for the removed ones.
    rests : mapping of str to GraphRest, optional
        What is left of the graphs that lost nodes.
    gone : frozenset of str
        Parameters and buffers that are gone altogether.

    Returns
    -------
    plan : Plan
        Ids keep their numbers, units are numbered anew, in order. Groups of which no unit or no
        position is left are gone, and branches that are left without parameters of their own: from
        now on they stay.
    units : int array, shape (new n_units,)
        The number that each unit had.

    Notes
    -----
    Of what a walk over a graph saw, its traces keep what gates and tensors need. Arguments and
    look-ups, which tell how to rewrite the sizes written into the *captured* graph, stay in the
    plan that was made of that graph, see `fxprune.origin`.
    """
    return _Restriction(plan, keep, rests or {}, gone).result()


@dataclass(slots=True)
class _Restriction:
    """One plan and what stays of its ids."""

    old: Plan
    keep: Keep
    rests: Mapping[str, GraphRest]
    gone: frozenset[str]

    def result(self) -> tuple[Plan, Ids]:
        old, gone = self.old, self.gone
        graphs = {key: self._graph(key, graph) for key, graph in old.graphs.items()}
        groups, units = self._groups({s.branch for g in graphs.values() for s in g.branches})
        graphs = {key: self._with_groups(graph, units) for key, graph in graphs.items()}
        plan = replace(
            old,
            groups=groups,
            frozen=tuple(self._frozen()),
            units=self._table(units),
            axes={axis: self._left(ids) for axis, ids in old.axes.items() if axis[0] not in gone},
            graphs=graphs,
            runs=tuple(self._left(ids) for ids in old.runs),
            shapes={n: self._shape(n, shape) for n, shape in old.shapes.items() if n not in gone},
            ties=tuple(self._ties(old.ties)),
            readers=frozenset(axis for axis in old.readers if axis[0] not in gone),
        )
        return plan, units

    def _stays(self, ids: Ids) -> npt.NDArray[np.bool_]:
        return self.old.kept(ids, self.keep)

    def _left(self, ids: Ids) -> Ids:
        return ids[self._stays(ids)]

    def _groups(self, branches: set[int]) -> tuple[tuple[ChannelGroup, ...], Ids]:
        """Return the groups that are left, and their units; `branches` are the ids of those."""
        groups, units = [], [np.zeros(0, dtype=np.int64)]
        ends = {int(self.old.units[branch].min()) for branch in branches}
        for group, at in zip(self.old.groups, self.old.group_slices().values(), strict=True):
            kept = np.flatnonzero(self.keep[at]) + at.start
            if group.kind == "branch":
                lives = at.start in ends
                members = tuple(m for m in group.members if lives and m.fqn not in self.gone)
            else:
                members = tuple(m for m in group.members if self._needs(m, kept))
            if members:
                groups.append(replace(group, size=len(kept), members=members))
                units.append(kept)
        return tuple(groups), np.concatenate(units)

    def _needs(self, member: Member, units: Ids) -> bool:
        """Return whether any position that is left of an axis needs one of some units.

        Those that also needed a unit of another group may all be gone.
        """
        ids = self.old.axes.get((member.fqn, member.dim))
        if ids is None or member.fqn in self.gone:
            return False
        return bool(np.isin(self.old.units[self._left(ids)], units).any())

    def _table(self, units: Ids) -> Ids:
        """Return the table of units in new numbers; the rows of removed ids mean nothing."""
        numbers = np.full(len(self.keep) + 1, len(units))
        numbers[units] = np.arange(len(units))
        table: Ids = numbers[self.old.units]
        return table

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axes = (self.old.axes.get((name, dim)) for dim in range(len(shape)))
        pairs = zip(axes, shape, strict=True)
        return tuple(self.old.width(ids, full, self.keep) for ids, full in pairs)

    def _frozen(self) -> Iterable[FrozenAxis]:
        for axis in self.old.frozen:
            if axis.member.fqn in self.gone:
                continue
            ids = self.old.axes.get((axis.member.fqn, axis.member.dim))
            yield replace(axis, size=self.old.width(ids, axis.size, self.keep))

    def _ties(self, ties: Iterable[Tie]) -> Iterable[Tie]:
        for tie in ties:
            stays = self._stays(tie.a) & self._stays(tie.b)
            if stays.any():
                yield Tie(tie.a[stays], tie.b[stays], tie.where)

    # -- graphs
    def _graph(self, key: str, graph: GraphPlan) -> GraphPlan:
        trace, rest = graph.trace, self.rests.get(key)
        values = {name: self._values(value) for name, value in trace.values.items()}
        small = GraphTrace(values=values, storages=trace.storages, writers=trace.writers)
        if rest is None:
            return replace(graph, trace=small)
        small.writers = [
            (node, place)
            for node, place in trace.writers
            if node in rest.nodes and node not in rest.instead
        ]
        ids = np.array([site.branch for site in graph.branches], dtype=np.int64)
        kept = zip(graph.branches, self._stays(ids).tolist(), strict=True)
        return GraphPlan(
            small,
            _gates(graph.gates, rest),
            tuple(site for site in graph.statistics if site.node in rest.nodes),
            tuple(site for site in graph.weights if site.node in rest.nodes),
            tuple(site for site, stays in kept if stays and site.node in rest.nodes),
        )

    def _with_groups(self, graph: GraphPlan, units: Ids) -> GraphPlan:
        """Return a graph without gates of branches that are no group any more."""
        sites = tuple(s for s in graph.branches if np.isin(self.old.units[s.branch], units).any())
        return replace(graph, branches=sites)

    def _values(self, values: NodeIds) -> NodeIds:
        return tuple((self._sizes(shape, ids), self._axes(ids)) for shape, ids in values)

    def _sizes(self, shape: tuple[int, ...], ids: TensorIds) -> tuple[int, ...]:
        pairs = zip(ids, shape, strict=True)
        return tuple(self.old.width(axis, full, self.keep) for axis, full in pairs)

    def _axes(self, ids: TensorIds) -> TensorIds:
        return tuple(None if axis is None else self._left(axis) for axis in ids)


def _gates(sites: Iterable[GateSite], rest: GraphRest) -> tuple[GateSite, ...]:
    """Return the gates that are left; those of a sum now stand behind the operand that is left."""
    found: dict[tuple[str, int], list[str]] = {}
    for site in sites:
        consumers = [name for name in site.consumers if name in rest.nodes]
        if consumers:
            found.setdefault((rest.source(site.source), site.dim), []).extend(consumers)
    return tuple(
        GateSite(source, dim, tuple(dict.fromkeys(names))) for (source, dim), names in found.items()
    )
