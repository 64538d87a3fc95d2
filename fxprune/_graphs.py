"""Turn an fx graph into plain records and back, keeping node names.

(torch.fx itself pickles by tracing anew, which may rename nodes.)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from fxprune._compat import operator_by_name, operator_name

__all__ = [
    "Record",
    "fetch",
    "graph_from_records",
    "graph_to_records",
    "needed_nodes",
    "plain_arguments",
    "returned_values",
]


@dataclass(frozen=True, slots=True)
class _Ref:
    """Stands for a node in a record's arguments."""

    name: str


Record = tuple[str, str, Any, Any, Any, dict[str, Any]]


def graph_to_records(graph: fx.Graph) -> list[Record]:
    """Return (name, op, target, args, kwargs, meta) of every node.

    Of the metadata, only the user's source line is kept.
    """
    records = []
    for node in graph.nodes:
        meta = {k: v for k, v in node.meta.items() if k == "fxprune_source"}
        args = fx.map_arg(node.args, _ref)
        kwargs = fx.map_arg(node.kwargs, _ref)
        records.append((node.name, node.op, _pack(node.target), args, dict(kwargs), meta))
    return records


def graph_from_records(records: Sequence[Record]) -> fx.Graph:
    """Return the graph that `graph_to_records` took apart."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, kwargs, meta in records:
        node = graph.create_node(
            op, _unpack(target), _resolve(args, nodes), _resolve(kwargs, nodes), name=name
        )
        node.meta.update(meta)
        nodes[name] = node
    return graph


@dataclass(frozen=True, slots=True)
class _Functional:
    """Stands for a function of torch.nn.functional that has no importable name of its own."""

    name: str


@dataclass(frozen=True, slots=True)
class _Operator:
    """Stands for an operator of torch.ops, which cannot be pickled."""

    name: str


def _pack(target: Any) -> Any:
    operator = operator_name(target)
    if operator is not None:
        return _Operator(operator)
    if "<locals>" in getattr(target, "__qualname__", ""):
        found = [name for name, value in vars(F).items() if value is target]
        return _Functional(found[0]) if found else target
    return target


def _unpack(target: Any) -> Any:
    if isinstance(target, _Operator):
        return operator_by_name(target.name)
    return getattr(F, target.name) if isinstance(target, _Functional) else target


def _ref(node: fx.Node) -> Any:
    return _Ref(node.name)


def _resolve(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, _Ref):
        return nodes[value.name]
    if isinstance(value, dict):
        return {k: _resolve(v, nodes) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_resolve(v, nodes) for v in value]
        return (
            type(value)(*items)
            if hasattr(value, "_fields")
            else tuple(items)
            if isinstance(value, tuple)
            else items
        )
    if isinstance(value, slice):
        return slice(*(_resolve(v, nodes) for v in (value.start, value.stop, value.step)))
    return value


def returned_values(graph: fx.Graph) -> list[tuple[fx.Node, fx.Node]]:
    """Return the nodes whose values a graph returns, in order, each with the node that takes it.

    That is the output node, or one that only builds an OrderedDict for it.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    return _gathered(output)


def _gathered(taker: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    found: list[tuple[fx.Node, fx.Node]] = []

    def visit(node: fx.Node) -> fx.Node:
        found.extend(_gathered(node) if node.target is OrderedDict else [(node, taker)])
        return node

    fx.map_arg(taker.args, visit)
    return found


def plain_arguments(value: Any, lookup: Callable[[fx.Node], Any]) -> Any:
    """Return a node's arguments with values for nodes, in plain lists and dicts.

    A graph holds its lists unchangeable; a function it calls may change its own.
    """
    if isinstance(value, fx.Node):
        return lookup(value)
    if isinstance(value, (list, tuple)):
        items = [plain_arguments(v, lookup) for v in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, dict):
        return {k: plain_arguments(v, lookup) for k, v in value.items()}
    if isinstance(value, slice):
        bounds = (value.start, value.stop, value.step)
        return slice(*(plain_arguments(v, lookup) for v in bounds))
    return value


def fetch(root: nn.Module, target: str) -> Any:
    """Return the attribute of `root` that a dotted name leads to."""
    value: Any = root
    for part in target.split("."):
        value = getattr(value, part)
    return value


def needed_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that an output depends on."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or any(user in found for user in node.users):
            found.add(node)
    return found
