"""Operators that cut pixels into windows, or put windows and pixels back: channels pass in blocks.

A window operator moves pixels inside each channel. Where it lays the k positions of a window beside
the channels (``im2col``), every channel becomes k neighbours; the way back makes one of k.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from fxprune.analysis.axes import AxisIds
from fxprune.analysis.op import Op
from fxprune.rules._registry import rule

__all__ = ["col2im", "fourier", "im2col", "max_unpool", "triangle", "unfold"]


def _pixels(op: Op, x: Tensor, dims: range) -> None:
    for dim in dims:
        op.freeze(op.ids(x)[dim], f"{op.where} works on it as on pixels")


@rule("aten::im2col")
def im2col(op: Op) -> None:
    """(.., C, H, W) -> (.., C k k, L): every channel becomes k k neighbours."""
    x, kernel = op.args[:2]
    _pixels(op, x, range(-2, 0))
    axis = op.ids(x)[-3]
    blocks = None if axis is None else np.repeat(axis, math.prod(kernel))
    op.set((*op.ids(x)[:-3], blocks, None), moved=x)


@rule("aten::col2im")
def col2im(op: Op) -> None:
    """(.., C k k, L) -> (.., C, H, W): the k k channels that make one go together."""
    x, kernel = op.args[0], op.args[2]
    _pixels(op, x, range(-1, 0))
    axis = op.ids(x)[-2]
    if axis is not None:
        box = axis.reshape(-1, math.prod(kernel))
        for column in range(1, box.shape[1]):
            op.space.unify(box[:, 0], box[:, column], op.where)
        axis = box[:, 0]
    op.set((*op.ids(x)[:-2], axis, None, None), moved=x)


@rule("aten::unfold")
def unfold(op: Op) -> None:
    """``x.unfold(dim, size, step)``: windows of one axis, their positions on a new last axis."""
    x = op.args[0]
    dim = op.args[1] % x.dim()
    ids = list(op.ids(x))
    op.freeze(ids[dim], f"{op.where} slides windows over it")
    ids[dim] = None
    op.set((*ids, None), moved=x)


@rule("aten::max_unpool2d", "aten::max_unpool3d")
def max_unpool(op: Op) -> None:
    """Put the maxima of a pooling back to the places it noted, channel by channel."""
    x, places = op.args[:2]
    spatial = 2 if op.name.endswith("2d") else 3
    ids: list[AxisIds] = []
    for tensor in (x, places):
        _pixels(op, tensor, range(-spatial, 0))
    for dim in range(x.dim() - spatial):
        ids.append(op.unify(op.ids(x)[dim], op.ids(places)[dim], x.shape[dim]))
    op.set((*ids, *(None,) * spatial))


@rule("aten::tril", "aten::triu")
def triangle(op: Op) -> None:
    """Keep one triangle of the last two axes."""
    x = op.args[0]
    op.freeze(op.ids(x)[-2:], f"{op.where} takes a triangle of it")
    op.set((*op.ids(x)[:-2], None, None), moved=x)


@rule("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def fourier(op: Op) -> None:
    """Fourier transform over some axes; linear in each of the others."""
    x, dims = op.args[:2]
    gone = {d % x.dim() for d in dims}
    ids = op.ids(x)
    for dim in gone:
        op.freeze(ids[dim], f"{op.where} transforms over it")
    op.set(tuple(None if d in gone else axis for d, axis in enumerate(ids)), moved=x)
