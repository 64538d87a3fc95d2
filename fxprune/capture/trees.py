"""Nested inputs and outputs of an exported model, written as plain nodes of its graph.

torch.export works on flat lists of tensors. What the model takes and returns may nest tuples,
lists, dicts, named tuples and dataclasses (also such that are mappings, as libraries return them):
`describe` takes such a tree apart, `unpack` reads its leaves from a placeholder, and `build` makes
it again from nodes.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

__all__ = ["Container", "Leaf", "build", "describe", "fill", "unpack"]


@dataclasses.dataclass(frozen=True, slots=True)
class Leaf:
    """Stands for the leaf of this number."""

    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Container:
    """A container: its type, the keys or field names (none for a sequence), and what it holds."""

    kind: type
    keys: tuple[Any, ...]
    items: tuple[Any, ...]


def describe(value: Any, is_leaf: Callable[[Any], bool], leaves: list[Any]) -> Any:
    """Return the tree of a value, its leaves appended to `leaves`; the rest are constants.

    Parameters
    ----------
    value : object
    is_leaf : callable
        Whether a value is a leaf; others that are no containers stay in the tree as constants.
    leaves : list
        Receives the leaves in order.

    Returns
    -------
    Leaf, Container or object
    """
    if is_leaf(value):
        leaves.append(value)
        return Leaf(len(leaves) - 1)
    keys: tuple[Any, ...] = ()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keys = tuple(f.name for f in dataclasses.fields(value) if f.init)
        items = [getattr(value, key) for key in keys]
    elif isinstance(value, Mapping):
        keys, items = tuple(value), list(value.values())
    elif isinstance(value, (tuple, list)):
        keys, items = getattr(value, "_fields", ()), list(value)
    else:
        return value
    return Container(type(value), keys, tuple(describe(v, is_leaf, leaves) for v in items))


def fill(tree: Any, leaves: Sequence[Any]) -> Any:
    """Return the value of a tree with these leaves."""
    if isinstance(tree, Leaf):
        return leaves[tree.number]
    if not isinstance(tree, Container):
        return tree
    items = [fill(item, leaves) for item in tree.items]
    if dataclasses.is_dataclass(tree.kind) or (issubclass(tree.kind, tuple) and tree.keys):
        return tree.kind(**dict(zip(tree.keys, items, strict=True)))
    if issubclass(tree.kind, Mapping):
        mapping: Any = tree.kind
        return mapping(zip(tree.keys, items, strict=True))
    return tuple(items) if issubclass(tree.kind, tuple) else items


def build(graph: fx.Graph, tree: Any, leaves: Sequence[fx.Node]) -> Any:
    """Return a node or argument that makes a tree from nodes for its leaves."""
    if isinstance(tree, Leaf):
        return leaves[tree.number]
    if not isinstance(tree, Container):
        return tree
    items = [build(graph, item, leaves) for item in tree.items]
    named = dict(zip(tree.keys, items, strict=True)) if tree.keys else {}
    if dataclasses.is_dataclass(tree.kind):
        return graph.call_function(tree.kind, (), named)
    if issubclass(tree.kind, tuple):
        return tree.kind(**named) if named else tuple(items)
    if tree.kind is OrderedDict:
        return graph.call_function(OrderedDict, (list(named.items()),))
    if issubclass(tree.kind, Mapping):
        return named if tree.kind is dict else graph.call_function(tree.kind, (named,))
    return items


def unpack(graph: fx.Graph, tree: Any, source: fx.Node, found: dict[int, fx.Node]) -> None:
    """Read the leaves of a tree from the node that holds it, into `found` by number."""
    if isinstance(tree, Leaf):
        found[tree.number] = source
    if not isinstance(tree, Container):
        return
    by_name = dataclasses.is_dataclass(tree.kind) or (issubclass(tree.kind, tuple) and tree.keys)
    for key, item in zip(tree.keys or range(len(tree.items)), tree.items, strict=True):
        if isinstance(item, (Leaf, Container)):
            read = getattr if by_name else operator.getitem
            unpack(graph, item, graph.call_function(read, (source, key)), found)
