"""Which nodes of a graph are needed, in-place writes and shared state included.

A node is live if it is the output, a placeholder, an assertion or another effect torch knows of, or
if a live node reads it. Two kinds of dead-looking nodes are needed as well:

* A node that writes into one of its inputs (``relu_``, ``x[i] = y``, ``inplace=True``, ``out=``) is
  live if the memory it writes is: something live, an input of the graph or a parameter or buffer
  read through ``get_attr`` may share it. "May share" is the closure of *result may alias input*,
  assumed of every operation not known to return fresh memory.
* A call that updates running statistics in training mode is live if a live call reads the same
  statistics.

Random operations are not effects here: dropping one shifts the random stream and nothing else.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from operator import attrgetter

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxprune._compat import OpOverload, is_mutable, op_name
from fxprune.passes.base import called_module

__all__ = ["dead_nodes"]

# torch.nn files whose modules compute a new tensor, unless they have inplace=True.
_FRESH_MODULE_FILES = frozenset(
    f"torch.nn.modules.{name}"
    for name in "activation batchnorm conv instancenorm normalization pooling rnn sparse".split()
)

# ATen operators that return fresh memory and carry neither the pointwise nor the reduction tag.
_FRESH_OPS = frozenset(
    """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d addmm avg_pool1d avg_pool2d avg_pool3d baddbmm
    batch_norm bmm cat concat conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution embedding gelu group_norm hardswish instance_norm layer_norm linear
    log_softmax matmul max_pool1d max_pool2d max_pool3d mm rms_norm scaled_dot_product_attention
    softmax stack
    """.split()
)

_OPERATOR_NAMES = {"truediv": "div", "floordiv": "floor_divide", "mod": "remainder"}

_WRITING_OPERATORS = frozenset(
    """
    iadd iand iconcat ifloordiv ilshift imatmul imod imul ior ipow irshift isub itruediv ixor
    setitem delitem
    """.split()
)


def dead_nodes(gm: GraphModule) -> tuple[tuple[Node, ...], dict[Node, str]]:
    """Find the nodes that can be erased, and those kept only for what they write.

    Parameters
    ----------
    gm : GraphModule
        A module with a valid graph.

    Returns
    -------
    dead : tuple[Node, ...]
        Nodes that can be erased in this order: no node is before one of its users.
    kept : dict[Node, str]
        Nodes nobody uses that must stay all the same, with the reason.

    Notes
    -----
    Time grows with the size of the graph times the number of writing nodes, which is small.
    """
    nodes = list(gm.graph.nodes)
    memory = _Memory(gm, nodes)
    live: set[Node] = set()
    kept: dict[Node, str] = {}
    _mark((node for node in nodes if memory.is_root(node)), live)
    found = True
    while found:
        found = False
        for node in nodes:
            reason = None if node in live else memory.reason_to_keep(node, live)
            if reason is not None:
                if not node.users:
                    kept[node] = reason
                _mark([node], live)
                found = True
    return tuple(node for node in reversed(nodes) if node not in live), kept


def _mark(roots: Iterable[Node], live: set[Node]) -> None:
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in live:
            live.add(node)
            stack.extend(node.all_input_nodes)


class _Memory:
    """Which values may share memory, and which buffers a call reads or updates."""

    def __init__(self, gm: GraphModule, nodes: list[Node]) -> None:
        self._gm = gm
        self._parent = {node: node for node in nodes}
        self._writes = {node: written for node in nodes if (written := _writes(gm, node))}
        for node in nodes:
            shared = node.all_input_nodes if _may_alias(gm, node) else self._writes.get(node, [])
            for source in shared:
                self._parent[self._root(source)] = self._root(node)
        self._state = {node: state for node in nodes if (state := _state(gm, node))}

    def _root(self, node: Node) -> Node:
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def is_root(self, node: Node) -> bool:
        """Tell whether a node is needed whatever the others are."""
        if node.op == "call_function" and node in self._writes:
            return False  # decided by what it writes into
        return not _is_random(_aten_name(node)) and node.is_impure(impure_random=False)

    def reason_to_keep(self, node: Node, live: set[Node]) -> str | None:
        """Say why a node that is not live has to stay, or None if it may go."""
        if node in self._writes:
            memory = {self._root(target) for target in self._writes[node]}
            shared = [other for other in self._parent if self._root(other) in memory]
            for other in shared:
                if other in live or (other.op == "get_attr" and self._is_kept(other, live)):
                    return f"it writes in place into memory that {other.name} may share"
        if node in self._state and _updates_state(self._gm, node):
            for other, state in self._state.items():
                if other in live and state & self._state[node]:
                    return f"it updates running statistics that {other.name} reads"
        return None

    def _is_kept(self, attribute: Node, live: set[Node]) -> bool:
        """Tell whether a parameter or buffer outlives the graph's dead part.

        It does not if the graph uses the module that owns it, but no live node does: such is the
        batch counter of a normalisation in a dead branch.
        """
        owner = str(attribute.target).rpartition(".")[0]
        siblings = [
            node
            for node in self._parent
            if node.op == "get_attr"
            and str(node.target).rpartition(".")[0] == owner
            and self._root(node) is not self._root(attribute)
        ]
        return not owner or not siblings or any(node in live for node in siblings)


def _aten_name(node: Node) -> str | None:
    """Return the name ATen gives to what a node calls, or None if it is not torch's."""
    target = node.target
    if isinstance(target, str):
        return target if node.op == "call_method" else None
    if isinstance(target, OpOverload):
        return op_name(target).removeprefix("aten::")
    name = getattr(target, "__name__", None)
    owner = getattr(target, "__module__", None) or "torch"
    if not isinstance(name, str) or owner.split(".")[0] not in ("torch", "_operator"):
        return None
    return _OPERATOR_NAMES.get(name, name)


def _overloads(name: str | None) -> list[OpOverload]:
    packet = getattr(torch.ops.aten, name, None) if name and name.isidentifier() else None
    if packet is None or not hasattr(packet, "overloads"):
        return []
    return [getattr(packet, overload) for overload in packet.overloads()]


@functools.cache
def _is_random(name: str | None) -> bool:
    return any(torch.Tag.nondeterministic_seeded in op.tags for op in _overloads(name))


@functools.cache
def _returns_fresh(name: str | None) -> bool:
    if name in _FRESH_OPS:
        return True
    tags = {tag for op in _overloads(name) for tag in op.tags}
    computed = torch.Tag.pointwise in tags or torch.Tag.reduction in tags
    return computed and torch.Tag.maybe_aliasing_or_mutating not in tags


def _may_alias(gm: GraphModule, node: Node) -> bool:
    """Tell whether the value of a node may share memory with one of its inputs."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    module = called_module(gm, node)
    if module is None:
        return not _returns_fresh(_aten_name(node))
    return type(module).__module__ not in _FRESH_MODULE_FILES and type(module) is not nn.Linear


def _writes(gm: GraphModule, node: Node) -> list[Node]:
    """Return the inputs a node writes into."""
    module = called_module(gm, node)
    if module is not None:
        in_place = any(getattr(m, "inplace", False) for m in module.modules())
        return node.all_input_nodes if in_place else []
    if node.op not in ("call_function", "call_method"):
        return []
    name = _aten_name(node) or ""
    if isinstance(node.target, OpOverload):
        in_place = is_mutable(node.target)
        only_first = name.endswith("_")
    else:
        in_place = "out" in node.kwargs or _is_in_place(node, name)
        only_first = "out" not in node.kwargs
    if not in_place:
        return []
    first = node.args[0] if node.args else node.kwargs.get("input")
    return [first] if only_first and isinstance(first, Node) else node.all_input_nodes


def _is_in_place(node: Node, name: str) -> bool:
    """Tell whether a call of a Python function or method writes into its first argument."""
    if getattr(node.target, "__module__", None) == "_operator" or name.startswith("__"):
        return name.strip("_") in _WRITING_OPERATORS
    return name.endswith("_") or _asks_inplace(node)


def _asks_inplace(node: Node) -> bool:
    """Tell whether a call passes inplace=True, by name or by position."""
    if isinstance(node.target, str) or "inplace" in node.kwargs:
        return bool(node.kwargs.get("inplace", False))
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):
        return False  # a builtin without a signature: its in-place form ends with "_"
    return bool(bound.arguments.get("inplace", False))


def _state(gm: GraphModule, node: Node) -> frozenset[int]:
    """Return the identities of the running statistics and other buffers a call reads."""
    module = called_module(gm, node)
    if module is not None:
        return frozenset(id(buffer) for buffer in module.buffers())
    if _aten_name(node) not in ("batch_norm", "instance_norm"):
        return frozenset()
    paths = [source.target for source in node.all_input_nodes if source.op == "get_attr"]
    return frozenset(id(attrgetter(path)(gm)) for path in paths if isinstance(path, str))


def _updates_state(gm: GraphModule, node: Node) -> bool:
    module = called_module(gm, node)
    if module is None:
        return True  # a functional norm: whether it trains may be decided by another node
    return any(
        m.training for m in module.modules() if next(m.buffers(recurse=False), None) is not None
    )
