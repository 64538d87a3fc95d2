"""Data movement: operators that only re-arrange elements re-arrange the ids in the same way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.axes import AxisIds, concat_ids, none_ids, reshape_ids
from fxprune.analysis.op import Op
from fxprune.rules._registry import rule
from fxprune.rules.pointwise import pointwise

__all__ = [
    "cat",
    "copy",
    "expand",
    "flip",
    "index",
    "index_select",
    "pad",
    "permute",
    "pixel_shuffle",
    "pixel_unshuffle",
    "repeat",
    "reshape",
    "select",
    "slice_",
    "split",
    "squeeze",
    "stack",
    "transpose",
    "unbind",
    "unsqueeze",
]


def _dim(dim: int, ndim: int) -> int:
    return dim % ndim if ndim else 0


@rule(
    "aten::alias",
    "aten::clone",
    "aten::contiguous",
    "aten::detach",
    "aten::lift_fresh",
    "aten::lift_fresh_copy",
    "aten::_to_copy",
    "aten::to",
    "aten::positive",
)
def copy(op: Op) -> None:
    """Keep the elements and their order."""
    op.set(op.ids(op.args[0]), moved=op.args[0])


@rule("aten::as_strided")
def as_strided(op: Op) -> None:
    """Change the memory layout: a copy if the shape stays, else a look-up by position."""
    x = op.args[0]
    if tuple(op.args[1]) == tuple(x.shape):
        copy(op)
        return
    op.freeze(op.ids(x), f"{op.where} reads it by memory position")
    op.set_none()


@rule("aten::copy")
def overwrite(op: Op) -> None:
    """``x.copy_(y)``: ties both, and the result is y broadcast to x."""
    pointwise(op)


@rule("aten::view", "aten::_unsafe_view", "aten::reshape", "aten::_reshape_alias")
def reshape(op: Op) -> None:
    """Reshape, see `fxprune.analysis.axes`."""
    x = op.args[0]
    op.set(reshape_ids(op.space, op.ids(x), x.shape, op.shape(), op.where), moved=x)


@rule("aten::permute")
def permute(op: Op) -> None:
    """Reorder the axes."""
    x, dims = op.args
    ids = op.ids(x)
    op.set(tuple(ids[_dim(d, x.dim())] for d in dims), moved=x)


@rule("aten::t", "aten::transpose", "aten::swapaxes", "aten::numpy_T")
def transpose(op: Op) -> None:
    """Swap two axes."""
    x = op.args[0]
    ids = list(op.ids(x))
    if len(ids) > 1:
        a, b = (
            (0, 1)
            if op.name == "aten::t"
            else (_dim(op.args[1], x.dim()), _dim(op.args[2], x.dim()))
        )
        ids[a], ids[b] = ids[b], ids[a]
    op.set(tuple(ids), moved=x)


@rule("aten::unsqueeze")
def unsqueeze(op: Op) -> None:
    """Add an axis of width 1."""
    x, dim = op.args
    ids = list(op.ids(x))
    ids.insert(_dim(dim, x.dim() + 1), None)
    op.set(tuple(ids), moved=x)


@rule("aten::squeeze")
def squeeze(op: Op) -> None:
    """Drop axes of width 1: all, one or several."""
    x, dims = op.args[0], op.arg(1, "dim")
    wanted = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {_dim(d, x.dim()) for d in wanted if x.shape[d] == 1}
    op.set(tuple(i for d, i in enumerate(op.ids(x)) if d not in gone), moved=x)


@rule("aten::expand")
def expand(op: Op) -> None:
    """Repeat axes of width 1.

    A repeated axis has positions of its own, which may be dropped freely.
    """
    x = op.args[0]
    shape = op.shape()
    ids: list[AxisIds] = [*none_ids(len(shape) - x.dim()), *op.ids(x)]
    old = [1] * (len(shape) - x.dim()) + list(x.shape)
    for d in range(1, len(shape)):
        if old[d] == 1 and shape[d] != 1:
            ids[d] = op.fresh(shape[d])
    op.set(tuple(ids), moved=x)


@rule("aten::repeat", "aten::tile")
def repeat(op: Op) -> None:
    """Repeat the whole tensor along its axes; an axis of width 1 as `expand` does it."""
    x, times = op.args
    shape = [1] * (len(times) - x.dim()) + list(x.shape)
    ids: list[AxisIds] = [*none_ids(len(times) - x.dim()), *op.ids(x)]
    for d, (axis, width, n) in enumerate(zip(ids, shape, times, strict=True)):
        if axis is not None:
            ids[d] = np.tile(axis, n)
        elif width == 1 and n != 1 and d:
            ids[d] = op.fresh(n)
    op.set(tuple(ids), moved=x)


@rule("aten::cat", "aten::concat")
def cat(op: Op) -> None:
    """Join along one axis; the other axes are tied."""
    tensors = [t for t in op.args[0] if t.shape != (0,)]
    ndim = tensors[0].dim()
    dim = _dim(op.arg(1, "dim", 0), ndim)
    result: list[AxisIds] = []
    for d in range(ndim):
        if d == dim:
            result.append(concat_ids([(op.ids(t)[d], t.shape[d]) for t in tensors]))
            continue
        axis = op.ids(tensors[0])[d]
        for other in tensors[1:]:
            axis = op.unify(axis, op.ids(other)[d], other.shape[d])
        result.append(axis)
    op.set(tuple(result))


@rule("aten::stack")
def stack(op: Op) -> None:
    """Join along a new axis of fixed width."""
    tensors = op.args[0]
    dim = _dim(op.arg(1, "dim", 0), tensors[0].dim() + 1)
    axes: list[AxisIds] = []
    for d in range(tensors[0].dim()):
        axis = op.ids(tensors[0])[d]
        for other in tensors[1:]:
            axis = op.unify(axis, op.ids(other)[d], other.shape[d])
        axes.append(axis)
    axes.insert(dim, None)
    op.set(tuple(axes))


@rule(
    "aten::split",
    "aten::split_with_sizes",
    "aten::chunk",
    "aten::unsafe_split",
    "aten::unsafe_chunk",
)
def split(op: Op) -> None:
    """Cut one axis into runs."""
    x = op.args[0]
    dim = _dim(op.arg(2, "dim", 0), x.dim())
    start = 0
    for out in op.out:
        ids = list(op.ids(x))
        run = ids[dim]
        ids[dim] = None if run is None else run[start : start + out.shape[dim]]
        start += out.shape[dim]
        op.set(tuple(ids), out, moved=x)


@rule("aten::unbind")
def unbind(op: Op) -> None:
    """Take every position of one axis apart: that axis must keep its width."""
    x = op.args[0]
    dim = _dim(op.arg(1, "dim", 0), x.dim())
    ids = op.ids(x)
    op.freeze(ids[dim], f"{op.where} takes its positions apart one by one")
    for out in op.out:
        op.set(ids[:dim] + ids[dim + 1 :], out, moved=x)


@rule("aten::select")
def select(op: Op) -> None:
    """Take one position of one axis: that axis must keep its width."""
    x, dim = op.args[:2]
    dim = _dim(dim, x.dim())
    ids = op.ids(x)
    op.freeze(ids[dim], f"{op.where} takes one position of it by number")
    op.set(ids[:dim] + ids[dim + 1 :], moved=x)


@rule("aten::slice")
def slice_(op: Op) -> None:
    """Take a range of one axis, or every n-th position of it."""
    x = op.args[0]
    dim = _dim(op.arg(1, "dim", 0), x.dim())
    start, end, step = op.arg(2, "start"), op.arg(3, "end"), op.arg(4, "step", 1)
    ids = list(op.ids(x))
    axis = ids[dim]
    if axis is not None:
        table = np.arange(len(axis))[start:end:step]
        if step != 1 and not op.lookup(x, dim, table):
            op.freeze(axis, f"{op.where} takes every {step}th position of it")
        ids[dim] = axis[table]
    op.set(tuple(ids), moved=x)


@rule("aten::flip", "aten::roll")
def flip(op: Op) -> None:
    """Reorder the positions of axes.

    Shifting a pruned axis by a number would land elsewhere, so it is frozen.
    """
    x, dims = op.args[0], op.arg(1 if op.name == "aten::flip" else 2, "dims")
    ids = list(op.ids(x))
    for dim in dims or range(x.dim()):
        axis = ids[dim]
        if axis is not None and op.name == "aten::flip":
            ids[dim] = axis[::-1].copy()
        else:
            op.freeze(axis, f"{op.where} shifts it by a number of positions")
            ids[dim] = None
    op.set(tuple(ids), moved=x)


@rule("aten::constant_pad_nd")
def pad(op: Op) -> None:
    """Pad with a constant: the padded positions are new and may be dropped freely."""
    x, widths = op.args[:2]
    ids = list(op.ids(x))
    for i in range(len(widths) // 2):
        dim = x.dim() - 1 - i
        before, after = widths[2 * i : 2 * i + 2]
        axis = ids[dim]
        if axis is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            axis = axis[max(0, -before) : len(axis) - max(0, -after)]
        ids[dim] = np.concatenate([op.fresh(max(0, before)), axis, op.fresh(max(0, after))])
    op.set(tuple(ids), moved=None if op.arg(2, "value", 0) else x)


def _take(op: Op, x: Tensor, dim: int, numbers: Tensor, axis: AxisIds) -> AxisIds:
    """Return the ids of one axis after taking positions of it by number."""
    known = op.const(numbers)
    if axis is not None and known is not None and known.dim() == 1:
        table = known.numpy().astype(np.int64) % len(axis)
        if op.lookup(x, dim, table):
            return axis[table]
    op.freeze(axis, f"{op.where} looks positions up by number")
    return None


@rule("aten::index_select")
def index_select(op: Op) -> None:
    """Take positions of one axis by number."""
    x, dim, numbers = op.args
    dim = _dim(dim, x.dim())
    ids = list(op.ids(x))
    ids[dim] = _take(op, x, dim, numbers, ids[dim])
    op.set(tuple(ids), moved=x)


@rule("aten::index", "aten::_unsafe_index")
def index(op: Op) -> None:
    """Take positions by number on some axes; the others pass through."""
    x, tables = op.args[:2]
    ids = list(op.ids(x))
    used = [d for d, t in enumerate(tables) if t is not None]
    numbers = [t for t in tables if t is not None]
    if len(used) == 1 and numbers[0].dim() == 1 and numbers[0].dtype == torch.long:
        ids[used[0]] = _take(op, x, used[0], numbers[0], ids[used[0]])
        op.set(tuple(ids), moved=x)
        return
    reason = f"{op.where} looks positions up by number"
    adjacent = used == list(range(used[0], used[-1] + 1))
    if not adjacent or any(t.dtype in (torch.bool, torch.uint8) for t in numbers):
        op.freeze(tuple(ids), reason)
        op.set_none()
        return
    for d in used:
        op.freeze(ids[d], reason)
    width = len(op.shape()) - (x.dim() - len(used))
    op.set((*ids[: used[0]], *none_ids(width), *ids[used[-1] + 1 :]))


@rule("aten::pixel_shuffle")
def pixel_shuffle(op: Op) -> None:
    """(C r r, H, W) -> (C, H r, W r): the r r channels that make one output channel go together."""
    x, factor = op.args
    _freeze_spatial(op, x)
    ids = list(op.ids(x))
    axis = ids[-3]
    if axis is not None:
        box = axis.reshape(-1, factor * factor)
        for column in range(1, factor * factor):
            op.space.unify(box[:, 0], box[:, column], op.where)
        ids[-3] = box[:, 0]
    op.set(tuple(ids), moved=x)


@rule("aten::pixel_unshuffle")
def pixel_unshuffle(op: Op) -> None:
    """(C, H r, W r) -> (C r r, H, W): every channel becomes r r neighbours."""
    x, factor = op.args
    _freeze_spatial(op, x)
    ids = list(op.ids(x))
    axis = ids[-3]
    ids[-3] = None if axis is None else np.repeat(axis, factor * factor)
    op.set(tuple(ids), moved=x)


def _freeze_spatial(op: Op, x: Tensor) -> None:
    op.freeze(op.ids(x)[-2:], f"{op.where} mixes pixels")
