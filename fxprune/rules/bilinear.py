"""Sums over two tensors that are no plain matrix product: bilinear forms and distances.

``y[n, o] = sum over i, j of a[n, i] w[o, i, j] b[n, j]`` contracts a with w and b with w. The
p-norm distance ``d[m, r] = (sum over i of |a[m, i] - b[r, i]|^p)^(1/p)`` contracts both at once:
with both gated a removed position adds |0 - 0|. Neither is counted, as in torch's counter.
"""

from __future__ import annotations

from torch import Tensor

from fxprune.analysis.axes import AxisIds
from fxprune.analysis.op import Op
from fxprune.rules._registry import rule

__all__ = ["diagonal_matrix", "distances", "trilinear"]


@rule("aten::_trilinear")
def trilinear(op: Op) -> None:
    """``sum over some axes of a * w * b``, each with axes of width 1 put in (F.bilinear)."""
    inserted, summed = op.args[3:6], set(op.args[6])
    tensors = list(op.args[:3])
    ndim = tensors[0].dim() + len(inserted[0])
    places = [[d for d in range(ndim) if d not in gone] for gone in inserted]
    ids: list[AxisIds] = [None] * ndim
    for axis in range(ndim):
        holders = [(t, at.index(axis)) for t, at in zip(tensors, places, strict=True) if axis in at]
        first, own = holders[0]
        if axis in summed and len(holders) == 2:
            op.contract_pair(first, own, *holders[1])
            continue
        ids[axis] = op.ids(first)[own]
        for other, dim in holders[1:]:
            ids[axis] = op.unify(ids[axis], op.ids(other)[dim], other.shape[dim])
        if axis in summed:
            op.freeze(ids[axis], f"{op.where} sums over it three tensors at once")
    op.set(tuple(axis for d, axis in enumerate(ids) if d not in summed))


@rule("aten::_cdist_forward")
def distances(op: Op) -> None:
    """Distances of every row of `a` (.., P, M) to every row of `b` (.., R, M)."""
    a, b = op.args[:2]
    reason = f"{op.where} sums over it together with something of fixed size"
    op.unify(op.ids(a)[-1], op.ids(b)[-1], a.shape[-1], reason)
    op.contract(a, [a.dim() - 1])
    op.contract(b, [b.dim() - 1])
    op.set((*_batch(op, a, b), op.ids(a)[-2], op.ids(b)[-2]))


def _batch(op: Op, a: Tensor, b: Tensor) -> list[AxisIds]:
    result: list[AxisIds] = []
    for back in range(len(op.shape()), 2, -1):
        wide = [t for t in (a, b) if t.dim() >= back and t.shape[-back] != 1]
        axis = op.ids(wide[0])[-back] if wide else None
        for other in wide[1:]:
            axis = op.unify(axis, op.ids(other)[-back], other.shape[-back])
        result.append(axis)
    return result


@rule("aten::diag_embed")
def diagonal_matrix(op: Op) -> None:
    """Put the last axis onto the diagonal of a new matrix: row and column i are position i."""
    x = op.args[0]
    rows, columns = op.arg(2, "dim1", -2) % (x.dim() + 1), op.arg(3, "dim2", -1) % (x.dim() + 1)
    ids, axis = list(op.ids(x)[:-1]), op.ids(x)[-1]
    if op.arg(1, "offset", 0):
        op.freeze(axis, f"{op.where} shifts it by a number of positions")
        axis = None
    for d in sorted((rows, columns)):
        ids.insert(d, axis)
    op.set(tuple(ids))
