"""Write channel shuffles as one look-up.

A shuffle with g groups is spelled as three reshapes of an axis of width ``C = g n``::

    (.., C, ..)  ->  (.., g, n, ..)  ->  (.., n, g, ..)  ->  (.., C, ..)

The tensor in the middle is a rectangle over (g, n), so cutting it would tie channel j of every
group together, and from there most channels of a ShuffleNet. As a look-up, ``x[:, order]`` with
``order = arange(C).view(g, n).T.flatten()``, it is what it means, a permutation, and every channel
stays free. A call of torch's own ``channel_shuffle`` is written in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from fxprune.analysis.trace import GraphTrace
from fxprune.passes._pruned_view import get_arg
from fxprune.passes._spellings import COPIES, PERMUTES, RESHAPES, SWAPS, permuted
from fxprune.passes.base import Edit, Pass, PassResult

__all__ = ["LowerChannelShuffle"]

Shape = tuple[int, ...]
_JOINS = (*RESHAPES, "flatten", torch.flatten)
_CALLS = (F.channel_shuffle, torch.channel_shuffle, torch.ops.aten.channel_shuffle.default)
_TURNS = (*SWAPS, *PERMUTES)


@final
@dataclass(frozen=True, slots=True, eq=False)
class LowerChannelShuffle(Pass):
    """Replace reshape, transpose, reshape by a look-up where that is a channel shuffle.

    Parameters
    ----------
    trace : GraphTrace
        What the analysis saw of this very graph; it knows the shapes.
    """

    name: ClassVar[str] = "lower_channel_shuffle"

    trace: GraphTrace

    def run(self, gm: GraphModule) -> PassResult:
        """Find and replace every shuffle."""
        edits = []
        for last in list(gm.graph.nodes):
            found = self._shuffle(last)
            if found is None:
                continue
            source, dim, groups, width = found
            order = torch.arange(width).view(groups, -1).t().flatten()
            name = f"channel_shuffle_{last.name}"
            gm.register_buffer(name, order, persistent=False)
            with gm.graph.inserting_before(last):
                numbers = gm.graph.create_node("get_attr", name)
                look_up = gm.graph.call_function(torch.index_select, (source, dim, numbers))
            look_up.meta.update(last.meta)
            last.replace_all_uses_with(look_up)
            edits.append(
                Edit(
                    self.name,
                    last.name,
                    f"shuffle of {groups} groups",
                    "index_select",
                    "a permutation",
                )
            )
        for node in reversed(list(gm.graph.nodes) if edits else []):
            if not node.users and node.target in (*_JOINS, *_TURNS, *_CALLS, *COPIES):
                gm.graph.erase_node(node)
        return PassResult(gm, changed=bool(edits), edits=tuple(edits))

    def _shape(self, node: Node) -> Shape | None:
        values = self.trace.values.get(node.name, ())
        return values[0][0] if len(values) == 1 else None

    def _called(self, node: Node) -> tuple[Node, int, int, int] | None:
        """Return the same of a call of torch's own shuffle."""
        source, groups = get_arg(node, 0, "input"), get_arg(node, 1, "groups")
        shape = self._shape(source) if isinstance(source, Node) else None
        return None if shape is None else (source, 1, groups, shape[1])

    def _shuffle(self, last: Node) -> tuple[Node, int, int, int] | None:
        """Return (input, axis, groups, width) if `last` is the last node of a shuffle."""
        if last.target in _CALLS:
            return self._called(last)
        if last.target not in _JOINS or not last.args:
            return None
        swap = last.args[0]
        while isinstance(swap, Node) and swap.target in COPIES:
            swap = swap.args[0]
        if not isinstance(swap, Node) or swap.target not in _TURNS or not swap.args:
            return None
        split = swap.args[0]
        if not isinstance(split, Node) or split.target not in _JOINS or not split.args:
            return None
        source = split.args[0]
        if not isinstance(source, Node):
            return None
        shapes = [self._shape(node) for node in (source, split, swap, last)]
        if any(shape is None for shape in shapes):
            return None
        start, apart, swapped, end = (shape for shape in shapes if shape is not None)
        channels = self.trace.values[source.name][0][1]
        if start != end or len(apart) != len(start) + 1:
            return None
        for dim in range(len(start)):
            if channels[dim] is None:
                continue
            groups, width = apart[dim], start[dim]
            rest = start[:dim], start[dim + 1 :]
            if apart == (*rest[0], groups, width // groups, *rest[1]) and (
                swapped == (*rest[0], width // groups, groups, *rest[1])
            ):
                return (source, dim, groups, width) if _swaps(swap, dim, len(apart)) else None
        return None


def _swaps(node: Node, dim: int, ndim: int) -> bool:
    """Return whether a node exchanges the axes `dim` and `dim + 1` and no others."""
    order = list(range(ndim))
    order[dim], order[dim + 1] = order[dim + 1], order[dim]
    return permuted(node, list(range(ndim))) == order
