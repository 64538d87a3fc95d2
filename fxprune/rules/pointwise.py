"""Pointwise operators: a residual add, a squeeze-excite product, a layer scale, an activation.

The operands broadcast against each other; where two of them carry ids on the same axis these are
tied position by position. An operand that has the full width on an axis but no ids there is of
fixed size, and so is then the result. An operand of width 1 there says nothing. ATen tags these
operators itself (``torch.Tag.pointwise``), so that none of them needs a row here.
"""

from __future__ import annotations

from torch import Tensor

from fxprune.analysis.axes import AxisIds, TensorIds
from fxprune.analysis.op import Op, flat_tensors
from fxprune.rules._registry import rule

__all__ = ["broadcast_ids", "glu", "new", "pointwise", "prelu", "same"]


def broadcast_ids(op: Op, tensors: list[Tensor], ndim: int) -> TensorIds:
    """Tie operands that broadcast against each other; return the ids of the result."""
    result: list[AxisIds] = [None] * ndim
    for d in range(1, ndim + 1):
        wide = [t for t in tensors if t.dim() >= d and t.shape[-d] != 1]
        if not wide:
            continue
        ids = op.ids(wide[0])[-d]
        for other in wide[1:]:
            ids = op.unify(ids, op.ids(other)[-d], other.shape[-d])
        result[-d] = ids
    return tuple(result)


@rule(
    "aten::hardswish",
    "aten::log_sigmoid",
    "aten::log_sigmoid_forward",
    "aten::floor_divide",
    "aten::polar",
)
def pointwise(op: Op) -> None:
    """Work on each element alone, with broadcasting; named above are those ATen does not tag."""
    tensors = op.tensors()
    for out in flat_tensors(op.out):
        if out.numel():
            op.set(broadcast_ids(op, tensors, out.dim()), out)


@rule(
    "aten::native_dropout",
    "aten::bernoulli",
    "aten::rrelu_with_noise",
    "aten::rand_like",
    "aten::randn_like",
    "aten::zeros_like",
    "aten::ones_like",
    "aten::empty_like",
    "aten::full_like",
    "aten::zero",
    "aten::fill",
    "aten::normal",
    "aten::uniform",
)
def same(op: Op) -> None:
    """Pass the ids of the first argument to every result of its shape."""
    x = op.args[0]
    for out in flat_tensors(op.out):
        if out.shape == x.shape:
            op.set(op.ids(x), out)


@rule(
    "aten::new_empty",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
    "aten::empty",
    "aten::zeros",
    "aten::ones",
    "aten::full",
)
def new(op: Op) -> None:
    """Make a new tensor of a given size, such as the first state of a recurrent layer.

    Its positions may be dropped freely, except along axis 0 (the batch). One of integers or of a
    single axis may be a list of numbers: it is kept.
    """
    shape = op.shape()
    if op.name.startswith("aten::new_") or (len(shape) > 1 and op.out.is_floating_point()):
        op.set(tuple(op.fresh(n) if d and n > 1 else None for d, n in enumerate(shape)))


@rule("aten::_prelu_kernel", "aten::prelu")
def prelu(op: Op) -> None:
    """PReLU: the slope has one value, or one per channel (axis 1)."""
    x, slope = op.args
    if slope.dim() == x.dim():
        pointwise(op)
        return
    ids = list(op.ids(x))
    if slope.numel() > 1:
        axis = 1 if x.dim() > 1 else 0
        ids[axis] = op.unify(ids[axis], op.ids(slope)[0], x.shape[axis])
    op.set(tuple(ids))


@rule("aten::glu")
def glu(op: Op) -> None:
    """Gated linear unit: one half of an axis times the sigmoid of the other half."""
    x, dim = op.args[0], op.arg(1, "dim", -1)
    ids = list(op.ids(x))
    axis = ids[dim]
    if axis is not None:
        half = len(axis) // 2
        ids[dim] = op.unify(axis[:half], axis[half:], half)
    op.set(tuple(ids))
