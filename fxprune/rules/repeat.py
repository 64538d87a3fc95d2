"""Positions repeated one by one: ``a a b b c c``, as ``repeat_interleave(2)`` makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.analysis.op import Op
from fxprune.rules._registry import rule

__all__ = ["SHAPES", "repeat_interleave"]


def _repeats(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return how often positions of which axis are repeated; None for any other form."""
    times = args[1] if len(args) > 1 else kwargs.get("repeats")
    dim = args[2] if len(args) > 2 else kwargs.get("dim")
    if not args or not isinstance(times, int) or not isinstance(dim, int):
        return None
    if not args[0].is_floating_point():  # may be a table of numbers, whose values are followed
        return None
    return times, dim % args[0].dim()


def _shapes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[int, ...]] | None:
    found = _repeats(args, kwargs)
    if found is None:
        return None
    times, dim = found
    return [tuple(n * times if d == dim else n for d, n in enumerate(args[0].shape))]


SHAPES: Mapping[str, Callable[[Sequence[Any], Mapping[str, Any]], list[tuple[int, ...]] | None]] = {
    "aten::repeat_interleave": _shapes
}
"""Operators that are analysed whole: from their arguments to the shapes of their results."""


@rule("aten::repeat_interleave")
def repeat_interleave(op: Op) -> None:
    """Repeat every position of an axis: the copies of a position follow it."""
    x: Tensor = op.args[0]
    found = _repeats(op.args, op.kwargs)
    if found is None:
        op.freeze(op.ids(x), f"{op.where} looks positions up by number")
        op.set_none()
        return
    times, dim = found
    ids = list(op.ids(x))
    axis = ids[dim]
    ids[dim] = None if axis is None else np.repeat(axis, times)
    op.set(tuple(ids), moved=x)
