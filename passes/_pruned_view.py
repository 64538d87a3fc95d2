"""The plan and a keep-vector as seen from one graph, for passes that rewrite its nodes."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.fx import Node

from fxprune.analysis.ids import Ids
from fxprune.analysis.plan import Plan
from fxprune.analysis.trace import NodeIds
from fxprune.passes._spellings import in_a_list

__all__ = ["PrunedView", "get_arg", "set_arg", "unpack"]


class PrunedView:
    """The plan and the keep-vector as seen from one graph."""

    def __init__(self, plan: Plan, keep: npt.NDArray[np.bool_], mode: str) -> None:
        self.plan = plan
        self.keep = keep
        self.trace = plan.graphs[mode].trace

    def values(self, node: Any) -> NodeIds:
        """Return shape and ids of every tensor in a node's value."""
        return self.trace.values.get(node.name, ()) if isinstance(node, Node) else ()

    def cut(self, ids: Ids | None) -> bool:
        """Return whether positions of an axis are removed."""
        return ids is not None and not bool(self.plan.kept(ids, self.keep).all())

    def count(self, ids: Ids | None, full: int) -> int:
        """Return how many positions of an axis of width `full` are kept."""
        return self.plan.width(ids, full, self.keep)

    def old_width(self, name: str, dim: int) -> int | None:
        """Return the width an axis had, if positions of it are removed."""
        values = self.trace.values.get(name, ())
        if len(values) != 1 or not self.cut(values[0][1][dim]):
            return None
        return values[0][0][dim]

    def old(self, node: Node, index: int, name: str) -> Any:
        """Return an argument as it was when the model ran, integers filled in."""
        args = self.trace.arguments.get(node.name, node.args)
        return args[index] if index < len(args) else self.trace.keywords[node.name][name]

    def listed(self, node: Node) -> list[Any]:
        """Return what a node was given besides its tensor, as `listed` reads it off the node."""
        given = self.trace.arguments.get(node.name, node.args)
        named = self.trace.keywords.get(node.name, node.kwargs)
        return in_a_list([*given[1:], *(v for k, v in named.items() if k != "input")])


def set_arg(node: Node, index: int, name: str, value: Any) -> None:
    """Set an argument, by name or by position, as it was given."""
    if name in node.kwargs:
        node.kwargs = {**node.kwargs, name: value}
    elif index < len(node.args):
        node.args = (*node.args[:index], value, *node.args[index + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def get_arg(node: Node, index: int, name: str, default: Any = None) -> Any:
    """Return an argument given by position or by name."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def unpack(node: Node, size: Node, count: int) -> list[Any]:
    """Return nodes for the first entries of a shape that is computed as a whole."""
    with node.graph.inserting_before(node):
        return [node.graph.call_function(operator.getitem, (size, i)) for i in range(count)]
