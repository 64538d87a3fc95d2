"""What a search for branches asks of a captured graph: who needs whom, and for what."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune._compat import OpOverload, is_mutable
from fxprune._graphs import fetch, needed_nodes
from fxprune.analysis.liveness import ALL, Clauses, ConflictError, both, implies
from fxprune.analysis.other_sizes import Shapes
from fxprune.analysis.summands import summands
from fxprune.analysis.trace import GraphTrace

__all__ = ["GraphFacts"]


class GraphFacts:
    """One captured graph.

    Parameters
    ----------
    root : nn.Module
    graph : fx.Graph
    trace : GraphTrace
        What a walk over it saw.
    names : mapping
        ``id(tensor)`` of every parameter and buffer to its name and kind.
    elsewhere : callable
        Returns the shapes with other inputs, see `fxprune.analysis.other_sizes`; called once, where
        they are needed.

    Attributes
    ----------
    parameters : dict of fx.Node to frozenset of str
        Names of the parameters that a node holds: those of the module it calls, or the one it
        reads.
    counted : set of fx.Node
        Those that multiply and accumulate.
    """

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        trace: GraphTrace,
        names: Mapping[int, tuple[str, str]],
        elsewhere: Callable[[], Sequence[Shapes]],
    ) -> None:
        self.graph = graph
        self._shapes_elsewhere = elsewhere
        self._trace = trace
        self._order = {node: place for place, node in enumerate(graph.nodes)}
        computing = {name for _, _, name in trace.terms}
        self.counted = {node for node in graph.nodes if node.name in computing}
        self._needed = needed_nodes(graph)
        self._sizes: dict[str, int] = {}
        self._states: dict[fx.Node, list[int]] = {}
        self.parameters: dict[fx.Node, frozenset[str]] = {}
        for node in graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self._note(node, fetch(root, str(node.target)), names)
        self._sources = self._value_sources()
        self._plain_sources = self._value_sources(plain=True)

    def _note(self, node: fx.Node, held: object, names: Mapping[int, tuple[str, str]]) -> None:
        if isinstance(held, nn.Module):
            tensors = list(held.parameters())
            norms = [m for m in held.modules() if isinstance(m, _NormBase)]
            self._states[node] = [id(buffer) for norm in norms for buffer in norm.buffers()]
        else:
            tensors = [held] if isinstance(held, nn.Parameter) else []
        if tensors:
            own = {names[id(t)][0]: t.numel() for t in tensors}
            self._sizes |= own
            self.parameters[node] = frozenset(own)

    def _value_sources(self, plain: bool = False) -> dict[fx.Node, int]:
        """Return for each node a bit set of the nodes that it depends on, from the inputs on.

        A tensor that has only its size, type or place from another does not depend on it. With
        `plain` nothing is followed through operators with parameters.
        """
        found: dict[fx.Node, int] = {}
        for node, place in self._order.items():
            if node.name in self._trace.plain:
                bits = 0
            elif node.op == "placeholder":
                bits = 1 << place
            else:
                bits = 0
                for source in _read(node):
                    bits |= found[source]
                bits = 0 if plain and self.parameters_of([node]) else bits
                bits |= (1 << place) if bits or plain else 0
            found[node] = bits
        return found

    # -- questions
    def related(self, a: fx.Node, b: fx.Node) -> bool:
        """Return whether two nodes depend on the values of one tensor."""
        return bool(self._sources[a] & self._sources[b])

    def bypasses(self, rest: fx.Node, operand: fx.Node) -> bool:
        """Return whether one operand of a sum is, or leads on, what the other is made of."""
        return bool(self._plain_sources[rest] & self._sources[operand])

    def alike(self, a: fx.Node, b: fx.Node) -> bool:
        """Return whether two nodes are single tensors of one shape and dtype.

        Where an axis other than the first has size 1, also with larger inputs.
        """
        one, two = (self._trace.shapes.get(node.name, ()) for node in (a, b))
        forms = [self._trace.forms.get(node.name) for node in (a, b)]
        if forms != [0, 0] or one != two or not one[0][0]:
            return False
        if 1 not in one[0][0][1:]:
            return True
        return all(shapes[a.name] == shapes[b.name] for shapes in self._elsewhere)

    @cached_property
    def _elsewhere(self) -> Sequence[Shapes]:
        return self._shapes_elsewhere()

    def needed_only_for(self, total: fx.Node, operand: fx.Node) -> set[fx.Node]:
        """Return the nodes from which every way to the output leads over one edge into a sum."""
        if self._needed.isdisjoint((total,)) or set(self._readers(operand)) != {total}:
            return set()
        found: set[fx.Node] = set()
        waiting = [(-self._order[operand], operand)]
        while waiting:
            _, node = heapq.heappop(waiting)
            if node in found or node.op == "placeholder":
                continue
            if node is operand or all(user in found for user in self._readers(node)):
                found.add(node)
                for source in node.all_input_nodes:
                    heapq.heappush(waiting, (-self._order[source], source))
        return found

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if user in self._needed]

    def parameters_of(self, nodes: Iterable[fx.Node]) -> frozenset[str]:
        """Return the parameters that nodes use, themselves or by what they read."""
        used = [self.parameters.get(n, frozenset()) for n in nodes]
        used += [
            self.parameters[source]
            for node in nodes
            for source in node.all_input_nodes
            if source.op == "get_attr" and source in self.parameters
        ]
        return frozenset().union(*used)

    def weight(self, nodes: set[fx.Node]) -> int:
        """Return how many elements the parameters have that no other nodes hold."""
        others = [held for node, held in self.parameters.items() if node not in nodes]
        left = self.parameters_of(nodes).difference(*others)
        return sum(self._sizes[name] for name in left)

    def has_effects(self, nodes: Iterable[fx.Node]) -> bool:
        """Return whether a node does more than compute a value."""
        return any(node.op == "call_function" and _is_impure(node) for node in nodes)

    # -- memory
    def check_writes(
        self, needed: Mapping[fx.Node, Clauses], sites: Mapping[fx.Node, tuple[int, int]]
    ) -> None:
        """Check that a write goes only where everything that shares the memory goes too.

        Raises
        ------
        ConflictError
            If removing one of its branches would change what another node reads.
        """
        # what has the memory later has it from the writer, or from one who had it before
        sharers: dict[Hashable, list[fx.Node]] = {}
        writers: list[tuple[fx.Node, Hashable]] = []
        nodes = {node.name: node for node in self.graph.nodes}
        for name, place in self._trace.storages.items():
            sharers.setdefault(place, []).append(nodes[name])
        writers += [(nodes[name], place) for name, place in self._trace.writers]
        for node, states in self._states.items():
            for state in states:
                sharers.setdefault(("state", state), []).append(node)
                writers.append((node, ("state", state)))
        for writer, memory in writers:
            when = self._write(writer, memory, needed, sites)
            for node in sharers.get(memory, ()):
                stays = ALL if node.op == "placeholder" else needed[node]
                counts = self._order[node] < self._order[writer] or isinstance(memory, tuple)
                if counts and when != ALL and not implies(stays, when):
                    raise ConflictError(frozenset().union(*when))

    def _write(
        self,
        node: fx.Node,
        memory: Hashable,
        needed: Mapping[fx.Node, Clauses],
        sites: Mapping[fx.Node, tuple[int, int]],
    ) -> Clauses:
        """Return when a node writes; a sum without the operand that it writes to does not."""
        pair = summands(node)
        if node not in sites or pair is None:
            return needed[node]
        place, branch = sites[node]
        if self._trace.storages.get(pair[place].name) != memory:
            return needed[node]
        return both(needed[node], frozenset((frozenset((branch,)),)))


def _is_impure(node: fx.Node) -> bool:
    """Return whether a call does more than compute and write to tensors."""
    writes = isinstance(node.target, OpOverload) and is_mutable(node.target)
    return not writes and node.is_impure(impure_random=False)


def _read(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose values a node reads, not only their sizes or types."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    name = name.partition(".")[0]
    if node.op in ("call_function", "call_method"):
        if name.startswith("new_") or name.endswith("_like"):
            return []
        if name.endswith("_as"):
            return node.all_input_nodes[:1]
    return node.all_input_nodes
