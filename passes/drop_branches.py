"""Take removed branches out of a graph.

For a sum ``s = a + b`` whose operand ``a`` is a removed branch::

    reader(s)    becomes    reader(b)

which is what the gated sum is, ``0 + b``; then everything goes that was needed for ``a`` only.
Where ``s`` or ``b`` is written in place later, ``clone(b)`` stands in for ``s``: a sum is a tensor
of its own, ``b`` is not. It may be read again; where nothing in the graph reads it, autograd may: a
ReLU in place keeps its result for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.fx import GraphModule

from fxprune._graphs import needed_nodes
from fxprune.analysis.plan import BranchSite, Plan
from fxprune.analysis.summands import summands
from fxprune.analysis.trace import GraphTrace
from fxprune.gates import Gate
from fxprune.passes.base import Edit, Pass, PassResult, called_module

__all__ = ["DropBranches"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class DropBranches(Pass):
    """Replace sums by what is left of them, and erase what was needed for removed branches only.

    Submodules and parameters stay where they are, even if no node refers to them any more.

    Parameters
    ----------
    plan : Plan
    keep : bool array, shape (n_units,)
    mode : str
        Which of the plan's graphs this is; its gates may still be in it.
    """

    name: ClassVar[str] = "drop_branches"

    plan: Plan
    keep: npt.NDArray[np.bool_]
    mode: str = "eval"

    def run(self, gm: GraphModule) -> PassResult:
        """Replace sums, erase dead nodes, then take out the clones that nothing can tell apart."""
        nodes = {node.name: node for node in gm.graph.nodes}
        sites = [s for s in self.plan.removed(self.mode, self.keep) if s.node in nodes]
        pairs = {site: summands(nodes[site.node]) for site in sites}
        sites = [site for site in sites if pairs[site] is not None]
        if not sites:
            return PassResult(gm, changed=False)
        before = needed_nodes(gm.graph)
        edits = [self._replace(nodes[site.node], site) for site in sites]
        for node in _dead(gm.graph, before):
            edits.append(Edit(self.name, node.name, str(node.target), "", "a branch was removed"))
            gm.graph.erase_node(node)
        left = set(gm.graph.nodes)
        clones = [nodes[site.node] for site in sites if nodes[site.node] in left]
        memory = _Memory(gm, self.plan.graphs[self.mode].trace)
        for clone in clones:
            source = clone.all_input_nodes[0]
            if memory.can_share(clone, source):
                clone.replace_all_uses_with(source)
                gm.graph.erase_node(clone)
        return PassResult(gm, changed=True, edits=tuple(edits))

    def _replace(self, node: fx.Node, site: BranchSite) -> Edit:
        """Turn a sum into a clone of the operand that is left."""
        pair = summands(node)
        rest = node if pair is None else pair[1 - site.operand]
        before = str(node.target)
        node.op, node.target, node.args, node.kwargs = "call_function", torch.clone, (rest,), {}
        return Edit(self.name, node.name, before, rest.name, "the other operand was removed")


def _dead(graph: fx.Graph, before: set[fx.Node]) -> list[fx.Node]:
    """Return the nodes that go, readers first.

    Those that no output depends on any more, and what was unread before (a check of a size, the
    batch counter of a norm) if something that it reads or belongs to goes.
    """
    now = needed_nodes(graph)
    gone = {node for node in before - now if node.op != "placeholder"}
    owners_before, owners_now = _owners(before), _owners(now)
    for node in graph.nodes:
        if node in before or node.op == "placeholder":
            continue
        owner = str(node.target).rpartition(".")[0]
        orphan = node.op == "get_attr" and owner in owners_before - owners_now
        if orphan or any(source in gone for source in node.all_input_nodes):
            gone.add(node)
    return [node for node in reversed(graph.nodes) if node in gone]


def _owners(nodes: set[fx.Node]) -> set[str]:
    """Return the modules that nodes call, or read tensors of."""
    calls = {str(node.target) for node in nodes if node.op == "call_module"}
    reads = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    return calls | reads


class _Memory:
    """Which values share memory, and who writes to it, as the trace of the whole graph showed."""

    def __init__(self, gm: GraphModule, trace: GraphTrace) -> None:
        self._order = {node: place for place, node in enumerate(gm.graph.nodes)}
        self._place: dict[fx.Node, int | str] = {}
        for node in gm.graph.nodes:
            if isinstance(called_module(gm, node), Gate):
                self._place[node] = self._place[node.all_input_nodes[0]]
            else:
                self._place[node] = trace.storages.get(node.name, node.name)
        written: dict[str, list[int]] = {}
        for name, place in trace.writers:
            written.setdefault(name, []).append(place)
        self._writes: dict[fx.Node, list[int | str]] = {
            node: list(written.get(node.name, ())) for node in gm.graph.nodes
        }

    def can_share(self, clone: fx.Node, source: fx.Node) -> bool:
        """Return whether a clone can be left out; from then on the two are one memory."""
        mine, its = self._place[clone], self._place[source]
        if mine != its and (
            self._clash(mine, its, clone, returned=True) or self._clash(its, mine, clone)
        ):
            return False
        for node, place in self._place.items():
            if place == mine:
                self._place[node] = its
        for places in self._writes.values():
            places[:] = [its if place == mine else place for place in places]
        del self._order[clone], self._place[clone], self._writes[clone]
        return True

    def _clash(
        self, one: int | str, other: int | str, clone: fx.Node, returned: bool = False
    ) -> bool:
        """Return whether `one` may be written after the clone, and `other` read after that.

        Autograd may read whatever there is. The caller may write to what it gets, and expects what
        it gave to stay as it was.
        """
        if any(
            one in places and node is not clone and self._order[node] > self._order[clone]
            for node, places in self._writes.items()
        ):
            return True
        holders = [node for node, place in self._place.items() if place == one]
        if not (returned and any(user.op == "output" for node in holders for user in node.users)):
            return False
        return any(
            node.op in ("placeholder", "get_attr")
            or any(user.op == "output" for user in node.users if user is not clone)
            for node, place in self._place.items()
            if place == other
        )
