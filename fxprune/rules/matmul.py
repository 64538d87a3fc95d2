"""The matrix-product family.

``c[.., i, j] = sum over k of a[.., i, k] * b[.., k, j]``: the contracted axes k are tied, i and j
pass through, batch axes are tied position by position. A linear layer reaches us as a transpose, a
reshape and one of these.
"""

from __future__ import annotations

import math

from torch import Tensor

from fxprune.analysis.axes import AxisIds
from fxprune.analysis.op import Op
from fxprune.rules._registry import rule

__all__ = ["addmm", "baddbmm", "bmm", "dot", "linear", "mm", "mv"]


def _count(op: Op, axes: list[tuple[int, AxisIds]]) -> None:
    fixed = math.prod(n for n, ids in axes if ids is None)
    op.macs(fixed, *(ids for _, ids in axes))


def _product(op: Op, a: Tensor, b: Tensor) -> tuple[AxisIds, ...]:
    """Tie a (.., i, k) with b (.., k, j), count, and return the ids of the result."""
    contracted = op.ids(a)[-1] if op.ids(a)[-1] is not None else op.ids(b)[-2]
    op.contract_pair(a, a.dim() - 1, b, b.dim() - 2)
    batch = [op.unify(op.ids(a)[d], op.ids(b)[d], a.shape[d]) for d in range(a.dim() - 2)]
    if not op.static(a) and not op.static(b):
        for axis in batch:
            op.space.mark_heads(axis)
    rows, columns = op.ids(a)[-2], op.ids(b)[-1]
    sizes = [*a.shape, b.shape[-1]]
    _count(op, list(zip(sizes, [*batch, rows, contracted, columns], strict=True)))
    return (*batch, rows, columns)


def _add(op: Op, added: Tensor, ids: tuple[AxisIds, ...]) -> tuple[AxisIds, ...]:
    """Tie the ids of a summand, broadcast on the left, with those of the product."""
    result = list(ids)
    shape = op.shape()
    for d in range(1, added.dim() + 1):
        if added.shape[-d] != 1:
            result[-d] = op.unify(ids[-d], op.ids(added)[-d], shape[-d])
    return tuple(result)


@rule("aten::mm", "aten::bmm")
def mm(op: Op) -> None:
    """Matrix product, plain or batched."""
    op.set(_product(op, op.args[0], op.args[1]))


bmm = mm


@rule("aten::addmm", "aten::baddbmm")
def addmm(op: Op) -> None:
    """Matrix product plus a summand (the bias of a linear layer)."""
    added, a, b = op.args[:3]
    op.set(_add(op, added, _product(op, a, b)))


baddbmm = addmm


@rule("aten::mv")
def mv(op: Op) -> None:
    """Matrix times vector; its few multiply-accumulates are not counted, as in torch's counter."""
    a, b = op.args
    op.contract_pair(a, 1, b, 0)
    op.set((op.ids(a)[0],))


@rule("aten::dot", "aten::vdot")
def dot(op: Op) -> None:
    """Inner product of two vectors."""
    op.contract_pair(op.args[0], 0, op.args[1], 0)
    op.set_none()


@rule("aten::linear")
def linear(op: Op) -> None:
    """Linear layer that was not decomposed: ``x (.., k)`` times ``w (o, k)`` transposed."""
    x, weight = op.args[:2]
    bias = op.arg(2, "bias")
    op.contract_pair(x, x.dim() - 1, weight, 1)
    made = op.ids(weight)[0]
    axes = [*zip(x.shape, op.ids(x), strict=True)]
    axes[-1] = (weight.shape[1], op.ids(weight)[1])
    _count(op, [*axes, (weight.shape[0], made)])
    ids = (*op.ids(x)[:-1], made)
    op.set(ids if bias is None else _add(op, bias, ids))
