"""Put gate nodes into a captured graph.

For a value ``v`` whose axis ``d`` carries units and a consumer that sums over ``d``::

    consumer(v)    becomes    consumer(gate(v, vector))

with one gate per value and axis, shared by its consumers, right before the first. Operators between
``v`` and its producer (activation, BatchNorm, residual adds) stay ungated: whatever they compute at
a removed position is multiplied by 0 before anything else can see it. An operator that takes a
statistic over a prunable axis (a LayerNorm, a mean) makes place for its gated twin, which takes the
gates as a mask (`fxprune.statistics`), and a recurrent layer takes them as masks of the weights
that read its own units. A branch has one gate, on the edge into the add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import torch
from torch import fx
from torch.fx import GraphModule

from fxprune.analysis.ids import Ids
from fxprune.analysis.plan import BranchSite, GateSite, Plan, StatisticGate, WeightGate
from fxprune.analysis.summands import summands
from fxprune.borders import split_key
from fxprune.errors import InternalError, PreconditionError
from fxprune.gated_leaves import WeightMask, gated_leaf
from fxprune.gates import Gate, GateVector, StatisticMask
from fxprune.passes.base import Edit, Pass, PassResult
from fxprune.statistics import find_twin, spelling_of, to_gated

__all__ = ["GATES", "InsertGates"]

GATES = "fxprune_gates"
"""Name of the submodule that holds the gate vector and, as its children, all gates."""


@final
@dataclass(frozen=True, slots=True, eq=False)
class InsertGates(Pass):
    """Insert a gate on every edge into what sums over a prunable axis, and on that of a branch.

    Parameters
    ----------
    plan : Plan
        What the analysis of this graph found.
    mode : str
        Which of the plan's graphs this is.
    """

    name: ClassVar[str] = "insert_gates"

    plan: Plan
    mode: str = "eval"

    def requires(self, gm: GraphModule) -> None:
        """Check that the plan was made for this graph and that it has no gates yet.

        Raises
        ------
        PreconditionError
            If a node the plan names is missing, or the graph has gates.
        """
        names = {node.name for node in gm.graph.nodes}
        here = self.plan.graphs[self.mode]
        needed = {site.source for site in here.gates} | {n for s in here.gates for n in s.consumers}
        needed |= {site.node for site in here.branches}
        missing = sorted(needed - names)
        if missing:
            raise PreconditionError(
                "The plan given to 'insert_gates' was made for another graph.",
                seen=f"no node named {missing[0]}",
                hint="analyse this very graph, then insert its gates",
            )
        if any(str(node.target).startswith(GATES) for node in gm.graph.nodes):
            raise PreconditionError(
                "The graph given to 'insert_gates' has gates already.",
                hint="run remove_gates first, or start from the captured graph",
            )

    def run(self, gm: GraphModule) -> PassResult:
        """Insert vector, gates and masks; see the module's docstring."""
        here = self.plan.graphs[self.mode]
        if not (here.gates or here.statistics or here.weights or here.branches):
            return PassResult(gm, changed=False)
        insertion = _Insertion(gm, self.plan, self.mode)
        edits = [insertion.gate(site) for site in here.gates]
        edits += [insertion.statistic(one) for one in here.statistics]
        edits += [insertion.weight(weight) for weight in here.weights]
        edits += [insertion.branch(site) for site in here.branches]
        return PassResult(gm, changed=True, edits=tuple(edits))


class _Insertion:
    """One run of the pass over one graph."""

    def __init__(self, gm: GraphModule, plan: Plan, mode: str) -> None:
        self.gm = gm
        self.plan = plan
        self.units = plan.units
        self.mode = mode
        self.trace = plan.graphs[mode].trace
        self.nodes = {node.name: node for node in gm.graph.nodes}
        self.order = {name: i for i, name in enumerate(self.nodes)}
        self.latest: dict[tuple[str, str], fx.Node] = {}
        if not hasattr(gm, GATES):
            gm.add_submodule(GATES, GateVector(plan.n_units))
        first = next(node for node in gm.graph.nodes if node.op != "placeholder")
        with gm.graph.inserting_before(first):
            self.vector = gm.graph.create_node("call_module", GATES, name=GATES)

    def gate(self, site: GateSite) -> Edit:
        """Put a gate before the first consumer, and one more after every write in between."""
        source = self.nodes[site.source]
        ndim = len(self.trace.values[site.source][0][0])
        name = f"{site.source}_{site.dim}"
        target = self._target(name)
        self.gm.add_submodule(target, Gate(self._index(site.source, site.dim - ndim)))
        gated: dict[tuple[fx.Node, int], fx.Node] = {}
        for consumer in sorted(site.consumers, key=self.order.__getitem__):
            before = self.latest.get((site.source, consumer), source)
            key = before, self._writes_before(consumer, site.source)
            if key not in gated:
                with self.gm.graph.inserting_before(self.nodes[consumer]):
                    gated[key] = self.gm.graph.create_node(
                        "call_module", target, (before, self.vector), name=f"gate_{name}"
                    )
            self.nodes[consumer].replace_input_with(before, gated[key])
            self.latest[site.source, consumer] = gated[key]
        why = f"summed over by {', '.join(site.consumers)}"
        return Edit(InsertGates.name, site.source, site.source, target, why)

    def _writes_before(self, consumer: str, source: str) -> int:
        """Count the nodes that wrote to a value's memory before a consumer, views included."""
        memory, end = self.trace.storages.get(source), self.order[consumer]
        return sum(
            self.order[source] < self.order[writer] < end
            for writer, place in self.trace.writers
            if place == memory
        )

    def statistic(self, site: StatisticGate) -> Edit:
        """Put its gated twin in the place of an operator, with the gates as a mask."""
        node = self.nodes[site.node]
        target = self._target(f"{site.node}_mask")
        plain = spelling_of(node.op, node.target)
        self.gm.add_submodule(target, StatisticMask(self._joint(site), plain))
        with self.gm.graph.inserting_before(node):
            mask = self.gm.graph.create_node(
                "call_module", target, (self.vector,), name=f"mask_{site.node}"
            )
        before = node.target
        if node.op == "call_module":
            self._gate_module(str(node.target))
        else:
            node.op, node.target = "call_function", find_twin(node)
        node.kwargs = {**node.kwargs, "mask": mask}
        why = "its statistics run over prunable channels"
        return Edit(InsertGates.name, site.node, str(before), f"gated {before}", why)

    def _gate_module(self, path: str) -> None:
        plain = self.gm.get_submodule(path)
        gated = to_gated(plain)
        if gated is None:
            raise InternalError(f"{path} has no gated twin", seen=type(plain).__name__)
        if gated is not plain:
            self.gm.set_submodule(path, gated)

    def weight(self, site: WeightGate) -> Edit:
        """Make a recurrent layer take the gates of a weight's columns as a mask."""
        node, path = self.nodes[site.node], str(self.nodes[site.node].target)
        target = self._target(f"{site.node}_{site.weight}_mask")
        ids = self.plan.axes[site.member.fqn, site.member.dim]
        behind = len(self.plan.shapes[site.member.fqn]) - 1 - site.member.dim
        self.gm.add_submodule(target, WeightMask(_broadcast(self.units[ids], behind)))
        with self.gm.graph.inserting_before(node):
            mask = self.gm.graph.create_node(
                "call_module", target, (self.vector,), name=f"mask_{site.node}_{site.weight}"
            )
        plain = self.gm.get_submodule(path)
        gated = gated_leaf(plain)
        if gated is not None:
            self.gm.set_submodule(path, gated.from_plain(plain))
        node.kwargs = {
            **node.kwargs,
            "masks": {**node.kwargs.get("masks", {}), site.weight: mask},
        }
        why = f"{site.member} is summed over inside the layer"
        return Edit(InsertGates.name, site.node, type(plain).__name__, "gated columns", why)

    def branch(self, site: BranchSite) -> Edit:
        """Put a gate on the edge from a branch into the add."""
        node = self.nodes[site.node]
        pair = summands(node)
        if pair is None:
            raise InternalError(f"{site.node} is no sum of two tensors", seen=str(node.target))
        operand, name = pair[site.operand], f"{site.node}_branch"
        target = self._target(name)
        self.gm.add_submodule(target, Gate(_broadcast(self.units[[site.branch]], 0)))
        with self.gm.graph.inserting_before(node):
            gate = self.gm.graph.create_node(
                "call_module", target, (operand, self.vector), name=f"gate_{name}"
            )
        node.replace_input_with(operand, gate)
        return Edit(InsertGates.name, site.node, operand.name, target, "it can do without it")

    def _target(self, name: str) -> str:
        """Return the path of a gate; all graphs share one gate vector but no gates."""
        path, mode = split_key(self.mode)
        owner = f"{GATES}.regions.{path}" if path else GATES
        return f"{owner}.{name}" if mode == "eval" else f"{owner}.{name}_{mode}"

    def _joint(self, site: StatisticGate) -> torch.Tensor:
        """Return the units of several axes at once: a position needs those of all its axes."""
        lead = -min(site.dims)
        parts = []
        for dim in site.dims:
            part = self._index(site.source, dim)
            parts.append(part.reshape(len(part), *(1,) * (lead + dim), *part.shape[1:]))
        widths = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
        return torch.cat([part.expand(len(part), *widths) for part in parts])

    def _index(self, source: str, dim: int) -> torch.Tensor:
        """Return the units of an axis, shaped (k, width, 1, ..) to broadcast from the right.

        `dim` counts from the right, so it is negative.
        """
        axis = self.trace.values[source][0][1][dim]
        return _broadcast(self.units[axis], -dim - 1)


def _broadcast(units: Ids, behind: int) -> torch.Tensor:
    """Return units of shape (width, k) as an index (k, width, 1, ..) with `behind` axes of 1."""
    table = np.ascontiguousarray(units.T)
    return torch.from_numpy(table).reshape(*table.shape, *(1,) * behind)
