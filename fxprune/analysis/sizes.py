"""Numbers that a graph computes from shapes: ``x.size(1)``, ``x.shape[-2:]``, ``x.numel()``.

The width of a single axis is noted, so that `resize_literals` can write the old number where the
axis is pruned. A number made of several widths at once (``numel``, a product over a shape) cannot
be kept apart from the batch size: the channels in it are frozen.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.analysis.op import flat_tensors
from fxprune.analysis.tracker import Tracker

__all__ = ["SizeBook"]

_NOT_A_SIZE = ("dim", "ndimension", "get_device", "element_size", getattr)


class SizeBook:
    """Keeps the nodes whose values are shapes or widths.

    Parameters
    ----------
    tracker : Tracker
        Where channels are frozen.
    env : mapping
        Value of every node executed so far.

    Attributes
    ----------
    widths : dict[str, tuple[str, int]]
        Nodes whose value is the width of one axis: the tensor's node and the axis.
    wholes : dict[str, tuple[str, tuple[int, ...]]]
        Nodes whose value is a shape or a part of one: the tensor's node and the axes.
    """

    def __init__(self, tracker: Tracker, env: Mapping[fx.Node, Any]) -> None:
        self.widths: dict[str, tuple[str, int]] = {}
        self.wholes: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._tracker = tracker
        self._env = env
        self._shapes: dict[fx.Node, tuple[fx.Node, tuple[int, ...]]] = {}

    def note(self, node: fx.Node, value: Any) -> None:
        """Note a node that was just executed."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            self._number(node)
        elif isinstance(value, torch.Size):
            self._shape(node, value)

    def _shape(self, node: fx.Node, value: torch.Size) -> None:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return
        if isinstance(self._env[source], Tensor):
            self._set(node, source, tuple(range(len(value))))
        elif source in self._shapes and node.target is operator.getitem:
            holder, dims = self._shapes[source]
            index: Any = fx.map_arg(node.args[1], self._env.__getitem__)
            if isinstance(index, slice):
                self._set(node, holder, dims[index])

    def _set(self, node: fx.Node, holder: fx.Node, dims: tuple[int, ...]) -> None:
        self._shapes[node] = holder, dims
        self.wholes[node.name] = holder.name, dims

    def _number(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return
        index = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        held = self._env[source]
        if node.op == "call_method" and node.target == "size" and isinstance(held, Tensor):
            if isinstance(index, int):
                self.widths[node.name] = source.name, index % max(held.dim(), 1)
        elif source in self._shapes and node.target is operator.getitem:
            holder, dims = self._shapes[source]
            if isinstance(index, int):
                self.widths[node.name] = holder.name, dims[index]
            else:
                self._freeze(holder, dims, "computes with its width")
        elif node.target not in _NOT_A_SIZE:
            for given in node.all_input_nodes:
                if given in self._shapes:
                    self._freeze(*self._shapes[given], "computes with its width")
                for tensor in flat_tensors(self._env[given]):
                    ids = self._tracker.record(tensor).ids
                    for axis in ids:
                        self._tracker.space.freeze(
                            axis, f"{self._tracker.where} counts its elements"
                        )

    def _freeze(self, holder: fx.Node, dims: tuple[int, ...], what: str) -> None:
        ids = self._tracker.record(self._env[holder]).ids
        for dim in dims:
            self._tracker.space.freeze(ids[dim], f"{self._tracker.where} {what}")
