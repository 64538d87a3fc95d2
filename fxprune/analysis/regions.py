"""Analyse the regions of a model that is captured in parts: one space of ids for all of them.

Every call of a region that a run of the model showed is walked, in order. A tensor that one region
returns and another takes, with nothing else using it, carries its ids along; at every other border
the channels are frozen. Costs are summed over all calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import fx, nn

from fxprune._graphs import returned_values
from fxprune.analysis.axes import TensorIds
from fxprune.analysis.build import Analysis, Rewrite
from fxprune.analysis.grouping import UNUSED
from fxprune.analysis.interpret import interpret
from fxprune.analysis.plan import Plan
from fxprune.analysis.policy import Attention
from fxprune.analysis.trace import GraphTrace
from fxprune.analysis.tracker import MacsTerm
from fxprune.borders import Borders, Leaf, MisfitError, RegionCall, region_key, split_key
from fxprune.errors import InputError, UnsupportedOpError
from fxprune.rules import Registry, registry

__all__ = ["RegionAnalysis"]


class RegionAnalysis(Analysis):
    """One analysis of all regions of one model; `run` makes the plan.

    Parameters
    ----------
    root : nn.Module
        The whole model.
    graphs : mapping of str to fx.Graph
        The regions' graphs over the whole model's names, by `region_key`.
    borders : Borders
        What a run of the model showed.
    rules, unknown, rewritten, attention, branches
        As for `Analysis`.
    """

    def __init__(
        self,
        root: nn.Module,
        graphs: Mapping[str, fx.Graph],
        borders: Borders,
        rules: Registry = registry,
        unknown: str = "freeze",
        rewritten: frozenset[Any] | None = None,
        attention: Attention = "both",
        branches: bool = False,
    ) -> None:
        super().__init__(root, graphs, rules, unknown, rewritten, attention, branches)
        self._borders = borders
        self._taken: dict[Leaf, TensorIds] = {}
        self._returned: dict[Leaf, TensorIds] = {}
        self._all_terms: list[tuple[str, MacsTerm]] = [("", (borders.macs, (), ""))]

    def run(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        ignored: Callable[[str], str | None],
        rewrite: Rewrite | None = None,
    ) -> Plan:
        """Walk every call of every region and return the plan.

        Parameters
        ----------
        args, kwargs
            Not used: the borders know the calls.
        ignored : callable
            Given a parameter's name, the reason why its output width must stay, or None.
        rewrite : callable, optional
            As for `Analysis`.

        Raises
        ------
        MisfitError
            If a region does not run as it was called.
        """
        plan = super().run(args, kwargs, ignored, rewrite)
        frozen = tuple(
            dataclasses.replace(axis, reason="only the Python code around the regions can use it")
            if axis.reason == UNUSED and not self._is_inside(axis.member.fqn)
            else axis
            for axis in plan.frozen
        )
        return dataclasses.replace(plan, frozen=frozen)

    def _anew(self) -> Analysis:
        return RegionAnalysis(
            self.root,
            self.graphs,
            self._borders,
            self._tracker.rules,
            self._tracker.unknown,
            self._rewritten,
            self._attention,
            self._offers_branches,
        )

    # -- walking
    def _walk(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Mapping[str, GraphTrace]:
        traces: dict[str, GraphTrace] = {}
        for call in self._borders.calls:
            for key in (region_key(call.path, mode) for mode in ("eval", "train")):
                if key not in self.graphs or (key in traces and key.endswith(":train")):
                    continue
                trace = self._trace(call, key)
                if key.endswith(":eval"):
                    self._all_terms += [
                        (key, (call.count * factor, runs, node))
                        for factor, runs, node in trace.terms
                    ]
                if key in traces:
                    self._tie_traces(traces[key], trace, call.path)
                else:
                    traces[key] = trace
        for name, why in self._borders.tensors.items():
            for owner, ids in self.space.runs():
                if owner.name == name:
                    self.space.freeze(ids, why)
        return traces

    def _trace(self, call: RegionCall, key: str) -> GraphTrace:
        self._tracker.border = f"what the Python code around {call.path} hands it"
        carried = [self._carried(call, place) for place in range(len(call.sources))]
        args, kwargs = call.inputs
        try:
            trace = interpret(
                self.root, self.graphs[key], self._tracker, args, kwargs, self._names, carried
            )
        except (InputError, UnsupportedOpError) as error:
            if isinstance(error, UnsupportedOpError) and self._tracker.unknown == "error":
                raise
            raise MisfitError(call.path, str(error)) from error
        for place, ids in enumerate(trace.outputs):
            known = self._returned.setdefault((call.path, place), ids)
            self._tie(known, ids, f"the calls of {call.path}")
        return trace

    def _carried(self, call: RegionCall, place: int) -> TensorIds | None:
        """Return the ids that an argument carries: those of all its sources, tied."""
        mine = call.path, place
        calls = [c for c in self._borders.calls if c.path == call.path]
        source = call.sources[place]
        ids = None if source is None else self._returned.get(source)
        if ids is None:
            return None
        if any(place >= len(c.sources) or c.sources[place] is None for c in calls):
            why = f"{call.path} takes it, and other tensors from the Python code around it"
            for axis in ids:
                self.space.freeze(axis, why)
            return None
        known = self._taken.setdefault(mine, ids)
        self._tie(known, ids, f"the calls of {call.path}")
        return known

    def _tie_traces(self, first: GraphTrace, other: GraphTrace, path: str) -> None:
        """Tie the channels of two calls of one graph: it is rewritten once for both."""
        for name in first.values.keys() | other.values.keys():
            one, two = first.values.get(name, ()), other.values.get(name, ())
            for place in range(max(len(one), len(two))):
                a = one[place][1] if place < len(one) else ()
                b = two[place][1] if place < len(two) else ()
                self._tie(a, b, f"the calls of {path}")

    def _tie(self, a: TensorIds, b: TensorIds, where: str) -> None:
        """Tie two tensors' ids axis by axis; freeze the axes that do not match."""
        why = f"{where} are not alike"
        for dim in range(max(len(a), len(b))):
            one = a[dim] if dim < len(a) else None
            two = b[dim] if dim < len(b) else None
            if one is None or two is None or len(one) != len(two):
                self.space.freeze(one, why)
                self.space.freeze(two, why)
            elif not np.array_equal(one, two):
                self.space.unify(one, two, where, why)

    # -- borders
    def _freeze_outputs(self, traces: Mapping[str, GraphTrace]) -> None:
        for key, trace in traces.items():
            path, _ = split_key(key)
            values = returned_values(self.graphs[key])
            for place, ids in enumerate(trace.outputs):
                if (path, place) in self._borders.read:
                    why = f"{path} returns it, and {self._borders.read[path, place]}"
                elif (
                    len(values) != len(trace.outputs) or trace.forms.get(values[place][0].name) != 0
                ):
                    why = f"{path} returns it among several tensors at once"
                else:
                    source, taker = (node.name for node in values[place])
                    axes = [axis for axis in ids if axis is not None]
                    trace.contractions += [(taker, source, axis) for axis in axes]
                    continue
                for axis in ids:
                    self.space.freeze(axis, why)
            self._freeze_written(self.graphs[key], trace, path)

    def _freeze_written(self, graph: fx.Graph, trace: GraphTrace, path: str) -> None:
        """Freeze what a region is handed and writes to in place: the giver's tensor changes."""
        written = {memory for _, memory in trace.writers}
        for node in graph.nodes:
            if node.op == "placeholder" and trace.storages.get(node.name) in written:
                for _, ids in trace.values.get(node.name, ()):
                    for axis in ids:
                        self.space.freeze(axis, f"{path} takes it and changes it in place")

    # -- cost
    def _terms(self, traces: Mapping[str, GraphTrace]) -> Sequence[tuple[str, MacsTerm]]:
        return self._all_terms

    def _stays(self) -> set[str]:
        return self._shared() | self._tracker.seen()

    def _shared(self) -> set[str]:
        names = {name for name, _ in self.root.named_parameters()}
        outside = {name for name in names if not self._is_inside(name)}
        return outside | set(self._borders.tensors)

    def _is_inside(self, name: str) -> bool:
        return any(name.startswith(f"{path}.") for path in self._borders.paths)
