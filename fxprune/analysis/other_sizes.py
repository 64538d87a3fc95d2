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

_LEAST, _TIMES = 128, 2
"""Sizes become at least this, and at least so many times as large: enough for maps of two pixels
behind six halvings, and no more than code needs that runs on real zeros."""


def shapes_elsewhere(
    root: nn.Module,
    graph: fx.Graph,
    trace: GraphTrace,
    names: Mapping[int, tuple[str, str]],
    rules: Registry,
) -> tuple[Shapes, ...]:
    """Return the shapes with larger maps and longer sequences.

    Where the channels are is not known, so they are taken to be the second axis of every input
    first, then the last: the graph seldom runs on both.

    Parameters
    ----------
    root, graph, names
        As for `fxprune.analysis.interpret.interpret`.
    trace : GraphTrace
        What a walk with the example saw.
    rules : Registry

    Returns
    -------
    tuple of mappings
        One for each way of being larger that the graph runs on; empty where it takes no other
        sizes, or inputs that are no tensors by themselves.
    """
    inputs = [node.name for node in graph.nodes if node.op == "placeholder"]
    if any(trace.forms.get(name) != 0 and name not in trace.plain for name in inputs):
        return ()
    found = []
    for channels in (1, -1):
        larger = [
            trace.plain[name] if name in trace.plain else _larger(*trace.shapes[name][0], channels)
            for name in inputs
        ]
        try:
            walked = interpret(root, graph, Tracker(IdSpace(), rules), larger, {}, names)
        except FxpruneError:
            continue
        found.append(walked.shapes)
    return tuple(found)


def _larger(shape: tuple[int, ...], dtype: torch.dtype, channels: int) -> Tensor:
    """Return an input that is larger in all axes but the first and that of the channels.

    By a whole number of times, as windows and patches need it. With two axes there are no channels
    (token ids), or no other axis.
    """
    sizes = list(shape)
    for axis in range(1, len(shape)):
        if len(shape) == 2 or axis != channels % len(shape):
            sizes[axis] *= max(_TIMES, -(-_LEAST // max(1, shape[axis])))
    return torch.empty(sizes, dtype=dtype, device="meta")
