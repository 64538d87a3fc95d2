"""What shapes the values of a graph have where its inputs are larger than the example's.

An axis of size 1 in the example may always have this size (a mean over a map) or only happen to
have it (a map of one pixel). The first broadcasts where the second is larger, so that the two may
not take each other's place.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fxprune.analysis.ids import IdSpace
from fxprune.analysis.interpret import interpret
from fxprune.analysis.trace import GraphTrace
from fxprune.analysis.tracker import Tracker
from fxprune.errors import FxpruneError
from fxprune.rules import Registry

__all__ = ["Shapes", "shapes_elsewhere"]

Shapes = Mapping[str, tuple[tuple[tuple[int, ...], torch.dtype], ...]]
"""As in `GraphTrace.shapes`: of the tensors in each node's value."""

_LEAST, _TIMES = 64, 2
"""Sizes become at least this, and so many times as large: enough for maps of several pixels behind
five halvings, and no more than code needs that runs on real zeros."""


def shapes_elsewhere(
    root: nn.Module,
    graph: fx.Graph,
    trace: GraphTrace,
    names: Mapping[int, tuple[str, str]],
    rules: Registry,
) -> Shapes:
    """Return the shapes at larger maps and longer sequences.

    Parameters
    ----------
    root, graph, names
        As for `fxprune.analysis.interpret.interpret`.
    trace : GraphTrace
        What a walk with the example saw.
    rules : Registry

    Returns
    -------
    mapping of str to tuple
        Empty where the graph takes no other sizes.
    """
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    if any(trace.forms.get(name) != 0 and name not in trace.plain for name in inputs):
        return {}
    larger = [
        trace.plain[name] if name in trace.plain else _larger(*trace.shapes[name][0])
        for name in inputs
    ]
    try:
        return interpret(root, graph, Tracker(IdSpace(), rules), larger, {}, names).shapes
    except FxpruneError:
        return {}


def _larger(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an input with larger maps (N, C, ...), or longer sequences (N, L, C)."""
    open_axes = range(2, len(shape)) if len(shape) > 3 else range(1, len(shape) - 1)
    sizes = [
        max(_LEAST, _TIMES * size) if axis in open_axes else size for axis, size in enumerate(shape)
    ]
    return torch.empty(sizes, dtype=dtype, device="meta")
