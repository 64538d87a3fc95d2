"""Analyse a captured model: run it once on meta tensors, resolve the ties, return the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from fxprune.analysis.axes import TensorIds
from fxprune.analysis.branches import Branches, find_branches
from fxprune.analysis.grouping import Grouping, group_units
from fxprune.analysis.ids import Ids, IdSpace
from fxprune.analysis.interpret import interpret
from fxprune.analysis.liveness import ALL
from fxprune.analysis.plan import (
    GateSite,
    GraphPlan,
    Member,
    Plan,
    StatisticGate,
    WeightGate,
)
from fxprune.analysis.policy import Attention, apply_policy
from fxprune.analysis.probe import unfit_nodes
from fxprune.analysis.terms import RunTable, parameter_term, while_needed
from fxprune.analysis.trace import GraphTrace
from fxprune.analysis.tracker import MacsTerm, Tracker
from fxprune.rules import Registry, registry

__all__ = ["Analysis", "Rewrite", "named_tensors"]

Rewrite = Callable[[Mapping[str, GraphTrace]], bool]


class Analysis:
    """One analysis of one model; `run` makes the plan.

    Parameters
    ----------
    root : nn.Module
        Holds parameters, buffers and leaf modules.
    graphs : mapping of str to fx.Graph
        The captured graph of each mode.
    rules : Registry
    unknown : {"freeze", "error"}
    rewritten : frozenset, optional
        ``(op, target)`` of the nodes whose written sizes a pass can change. When given, every other
        node is checked to follow its inputs' widths, and frozen if it does not.
    attention : {"head", "head_dim", "both", "off"}
        What of attention is prunable.
    branches : bool
        Whether operands of residual adds are prunable.
    """

    def __init__(
        self,
        root: nn.Module,
        graphs: Mapping[str, fx.Graph],
        rules: Registry = registry,
        unknown: str = "freeze",
        rewritten: frozenset[Any] | None = None,
        attention: Attention = "both",
        branches: bool = False,
    ) -> None:
        self.root = root
        self.graphs = graphs
        self.space = IdSpace()
        self._rewritten = rewritten
        self._attention = attention
        self._offers_branches = branches
        self._branches = Branches()
        self._tracker = Tracker(self.space, rules, unknown)
        self._names = named_tensors(root)

    def run(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        ignored: Callable[[str], str | None],
        rewrite: Rewrite | None = None,
    ) -> Plan:
        """Walk every graph on inputs of these shapes and return the plan.

        Parameters
        ----------
        args, kwargs
            Example inputs.
        ignored : callable
            Given a parameter's name, the reason why its output width must stay, or None.
        rewrite : callable, optional
            Given what was seen of every graph, writes in better form what can be, and returns
            whether it changed any; they are walked again then.

        Raises
        ------
        InputError
            If a graph does not run on these inputs.
        """
        traces = self._walk(args, kwargs)
        if any(self._redirect(mode, trace) for mode, trace in traces.items()):
            return self._anew().run(args, kwargs, ignored, rewrite)
        if rewrite is not None and rewrite(traces):
            return self._anew().run(args, kwargs, ignored)
        self._freeze_outputs(traces)
        self._freeze_ignored(ignored)
        for mode, trace in traces.items():
            self._freeze_ungatable(self.graphs[mode], trace)
        apply_policy(self.space, self._attention)
        if self._offers_branches:
            self._branches = self._find_branches(traces, ignored)
        grouping = self._group()
        while self._rewritten is not None and self._freeze_unfit(traces, grouping):
            grouping = self._group()
        return self._plan(traces, grouping)

    def _anew(self) -> Analysis:
        """Return an analysis of the same graphs that has seen nothing yet."""
        return type(self)(
            self.root,
            self.graphs,
            self._tracker.rules,
            self._tracker.unknown,
            self._rewritten,
            self._attention,
            self._offers_branches,
        )

    # -- before resolving
    def _walk(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, GraphTrace]:
        return {
            mode: interpret(self.root, graph, self._tracker, args, kwargs, self._names)
            for mode, graph in self.graphs.items()
        }

    def _freeze_outputs(self, traces: Mapping[str, GraphTrace]) -> None:
        for trace in traces.values():
            for ids in trace.outputs:
                for axis in ids:
                    self.space.freeze(axis, "it is an output of the model")

    def _redirect(self, mode: str, trace: GraphTrace) -> bool:
        """Let readers of a value that was changed in place read what the writer returned.

        Returns whether any reader was changed.
        """
        graph = self.graphs[mode]
        nodes = {node.name: node for node in graph.nodes}
        order = {node: i for i, node in enumerate(graph.nodes)}
        changed = False
        for value, writer in trace.redirects:
            old, new = nodes[value], nodes[writer]
            for user in list(old.users):
                if order[user] > order[new]:
                    user.replace_input_with(old, new)
                    changed = True
        return changed

    def _freeze_ignored(self, ignored: Callable[[str], str | None]) -> None:
        inputs = self.space.input_mask()
        for owner, ids in self.space.runs():
            reason = None if owner.kind == "node" else ignored(owner.name)
            if reason is not None:
                self.space.freeze(ids[~inputs[ids]], reason)

    def _freeze_ungatable(self, graph: fx.Graph, trace: GraphTrace) -> None:
        """Freeze ids that are summed over where no gate can stand."""
        nodes = {node.name: node for node in graph.nodes}
        for consumer, source, ids in trace.contractions:
            values = trace.values.get(source, ())
            if len(values) != 1:
                self.space.freeze(ids, f"{consumer} sums over it and reads several tensors at once")
                continue
            on_axes = [
                self.space.find(self.space.atoms(axis)) for axis in values[0][1] if axis is not None
            ]
            needed = self.space.atoms(ids)
            self._freeze_on_batch(nodes[source], values[0][1], needed)
            there = (
                np.isin(self.space.find(needed), np.concatenate(on_axes)) if on_axes else needed < 0
            )
            self.space.freeze(needed[~there], f"{consumer} sums over it where no gate can stand")
        for name, source, dims in trace.statistics:
            values = trace.values[source]
            if len(values) != 1:
                for d in dims:
                    reason = f"{name} takes a statistic over it and reads several tensors at once"
                    self.space.freeze(values[0][1][d], reason)

    def _freeze_on_batch(self, source: fx.Node, axes: TensorIds, needed: Ids) -> None:
        """Freeze channels that share axis 0 with the batch: a gate there would fix its size."""
        if source.op == "get_attr" or not axes or axes[0] is None:
            return
        roots = self.space.find(self.space.atoms(axes[0]))
        mixed = needed[np.isin(self.space.find(needed), roots)]
        self.space.freeze(mixed, f"{source.name} merges it with the batch")

    def _freeze_unfit(self, traces: Mapping[str, GraphTrace], grouping: Grouping) -> bool:
        """Freeze the channels of nodes with a size that nobody rewrites; return whether any was."""
        found = False
        probed: dict[str, frozenset[Any]] = {}
        for mode, trace in traces.items():
            graph = self.graphs[mode]
            nodes = {node.name: node for node in graph.nodes}
            path = mode.rpartition(":")[0]
            trusted = probed.get(path, self._rewritten or frozenset())
            unfit = unfit_nodes(self.root, graph, trace, grouping, trusted)
            mine = {(node.name, node.target) for node in graph.nodes}
            probed[path] = trusted | mine  # the modes of one model or region share most
            for name, where in unfit:
                found = True
                reason = f"{where} has a size written in it that fxprune does not rewrite"
                for around in (nodes[name], *nodes[name].all_input_nodes):
                    for _, ids in trace.values.get(around.name, ()):
                        for axis in ids:
                            self.space.freeze(axis, reason)
        return found

    def _find_branches(
        self, traces: Mapping[str, GraphTrace], ignored: Callable[[str], str | None]
    ) -> Branches:
        shared = self._shared()
        return find_branches(
            self.root,
            self.graphs,
            traces,
            self._names,
            self.space,
            lambda name: name in shared or ignored(name) is not None,
            self._tracker.rules,
        )

    def _group(self) -> Grouping:
        return group_units(self.space, self._unused(), self._branches.members)

    def _unused(self) -> list[tuple[str, tuple[int, ...]]]:
        touched = self._tracker.seen()
        return [
            (name, tuple(p.shape))
            for name, p in self.root.named_parameters()
            if name not in touched and any(n != 1 for n in p.shape)
        ]

    # -- after resolving
    def _plan(self, traces: Mapping[str, GraphTrace], grouping: Grouping) -> Plan:
        table, needed = RunTable(grouping), self._branches
        macs = table.terms(
            [
                term
                for key, (factor, runs, node) in self._terms(traces)
                for term in while_needed(factor, runs, needed.nodes.get((key, node), ALL))
            ]
        )
        shapes = {name: tuple(p.shape) for name, p in self.root.named_parameters()}
        stays = self._stays()
        params = table.terms(
            [
                term
                for name, shape in shapes.items()
                if name in stays
                for term in while_needed(
                    *parameter_term(name, shape, grouping.axes), needed.parameters.get(name, ALL)
                )
            ]
        )
        shapes.update({name: tuple(b.shape) for name, b in self.root.named_buffers()})
        graphs = {
            mode: GraphPlan(
                trace,
                *self._gates(self.graphs[mode], trace, grouping),
                _weight_gates(trace, grouping),
                self._branches.sites.get(mode, ()),
            )
            for mode, trace in traces.items()
        }
        return Plan(
            groups=grouping.groups,
            frozen=grouping.frozen,
            units=grouping.resolution.units,
            axes=grouping.axes,
            graphs=graphs,
            runs=tuple(table.runs),
            macs=macs,
            params=params,
            shapes=shapes,
            ties=tuple(self.space.ties),
            readers=self._readers(),
        )

    def _terms(self, traces: Mapping[str, GraphTrace]) -> Sequence[tuple[str, MacsTerm]]:
        """Return the multiply-accumulates of one forward in evaluation mode, by graph."""
        return [("eval", term) for term in traces["eval"].terms]

    def _stays(self) -> set[str]:
        """Return the names of the parameters that are in the compact model."""
        return self._tracker.seen()

    def _shared(self) -> set[str]:
        """Return the names of the parameters that something outside of the graphs uses."""
        return set()

    def _readers(self) -> frozenset[tuple[str, int]]:
        inputs = self.space.input_mask()
        return frozenset(
            (owner.name, owner.dim) for owner, ids in self.space.runs() if inputs[ids].any()
        )

    def _gates(
        self, graph: fx.Graph, trace: GraphTrace, grouping: Grouping
    ) -> tuple[tuple[GateSite, ...], tuple[StatisticGate, ...]]:
        units, none = grouping.resolution.units, grouping.resolution.n_units
        wanted: dict[tuple[str, int], dict[str, None]] = {}
        for consumer, source, ids in trace.contractions:
            summed = np.unique(units[ids])
            for dim, axis in enumerate(
                trace.values[source][0][1] if source in trace.values else ()
            ):
                mine = np.zeros(0) if axis is None else np.unique(units[axis])
                shared = np.intersect1d(mine, summed)
                if (shared != none).any():
                    wanted.setdefault((source, dim), {})[consumer] = None
        order = {node.name: i for i, node in enumerate(graph.nodes)}
        sites = [
            GateSite(source, dim, tuple(consumers)) for (source, dim), consumers in wanted.items()
        ]
        sites.sort(key=lambda site: (order[site.source], site.dim))
        statistics = []
        for node, source, dims in trace.statistics:
            shape, axes = trace.values[source][0]
            free = [d for d in dims if axes[d] is not None and (units[axes[d]] != none).any()]
            if free:
                gated = tuple(d - len(shape) for d in free)
                statistics.append(StatisticGate(node, source, gated))
        return tuple(sites), tuple(statistics)


def _weight_gates(trace: GraphTrace, grouping: Grouping) -> tuple[WeightGate, ...]:
    none = grouping.resolution.n_units
    return tuple(
        WeightGate(node, weight, Member(fqn, dim))
        for node, weight, fqn, dim in dict.fromkeys(trace.weights)
        if (grouping.resolution.units[grouping.axes[fqn, dim]] != none).any()
    )


def named_tensors(root: nn.Module) -> dict[int, tuple[str, str]]:
    """Map ``id(tensor)`` of every parameter and buffer to its first name and kind."""
    found: dict[int, tuple[str, str]] = {}
    stores: list[tuple[str, list[tuple[str, Tensor]]]] = [
        ("parameter", list(root.named_parameters())),
        ("buffer", list(root.named_buffers())),
    ]
    for kind, tensors in stores:
        for name, tensor in tensors:
            found.setdefault(id(tensor), (name, kind))
    return found
