"""Operators that read or write positions by number: tables of embeddings, assignments to places.

The axes along which positions have numbers must keep their width; all other axes pass, and follow
what is written into them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.analysis.axes import AxisIds, none_ids
from fxprune.analysis.op import Op
from fxprune.rules._registry import rule

__all__ = [
    "embedding",
    "embedding_bag",
    "gather",
    "index_put",
    "index_write",
    "masked_select",
    "scatter",
]


@rule("aten::embedding")
def embedding(op: Op) -> None:
    """Table look-up: rows are chosen by number, columns are channels."""
    table, at = op.args[:2]
    op.freeze(op.ids(table)[0], f"{op.where} looks rows up by number")
    op.freeze(op.ids(at), f"{op.where} looks rows up by number")
    op.set((*(None,) * at.dim(), op.ids(table)[1]))


@rule("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def embedding_bag(op: Op) -> None:
    """Table look-up, and the sum, mean or maximum of several rows, each column alone."""
    table = op.args[0]
    op.freeze(op.ids(table)[0], f"{op.where} looks rows up by number")
    for other in op.tensors()[1:]:
        op.freeze(op.ids(other), f"{op.where} reads it as numbers of rows, or their weights")
    op.set_none()
    op.set((None, op.ids(table)[1]), op.out[0])


@rule("aten::index_fill", "aten::index_add", "aten::index_copy")
def index_write(op: Op) -> None:
    """Write at some positions of one axis; a tensor that is written is tied on all other axes."""
    x, dim, _, value = op.args[:4]
    ids = list(op.ids(x))
    dim = dim % x.dim()
    op.freeze(ids[dim], f"{op.where} writes positions of it by number")
    ids[dim] = None
    if isinstance(value, Tensor) and value.dim() == x.dim():
        op.freeze(op.ids(value)[dim], f"{op.where} writes positions of it by number")
        for d in range(x.dim()):
            if d != dim:
                ids[d] = op.unify(ids[d], op.ids(value)[d], x.shape[d])
    op.set(tuple(ids))


@rule("aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index_put")
def index_put(op: Op) -> None:
    """``x[:, :, at] = value``: like `index`, and the value is tied to what it is written over."""
    x, indices, value = op.args[:3]
    ids = list(op.ids(x))
    reason = f"{op.where} writes positions of it by number"
    used = [d for d, at in enumerate(indices) if at is not None]
    masks = any(indices[d].dtype in (torch.bool, torch.uint8) for d in used)
    single = value.numel() == 1
    if masks or (not single and used != list(range(used[0], used[-1] + 1))):
        op.freeze(tuple(ids), reason)
        op.freeze(op.ids(value), reason)
        op.set_none()
        return
    for d in used:
        op.freeze(ids[d], reason)
        ids[d] = None
    if not single:
        shape = torch.broadcast_shapes(*(indices[d].shape for d in used))  # type: ignore[no-untyped-call]
        _tie_written(op, value, used, len(shape), ids)
    op.set(tuple(ids))


def _tie_written(op: Op, value: Tensor, used: list[int], places: int, ids: list[AxisIds]) -> None:
    """Tie `value`, which broadcasts against (axes before, places, axes behind)."""
    target = op.args[0].shape
    numbered: list[int | None] = [
        *range(used[0]),
        *(None,) * places,
        *range(used[-1] + 1, len(target)),
    ]
    given = op.ids(value) if value.dim() else none_ids(0)
    for back in range(1, value.dim() + 1):
        d, axis, width = numbered[-back], given[-back], value.shape[-back]
        if d is None:
            op.freeze(axis, f"{op.where} writes positions of it by number")
        elif width != 1:
            ids[d] = op.unify(ids[d], axis, width)


@rule("aten::gather")
def gather(op: Op) -> None:
    """``y[i, j] = x[at[i, j], j]``: each position of the other axes looks along one of its own."""
    x, dim, at = op.args[:3]
    _one_by_one(op, dim, (x, at), "reads")


@rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def scatter(op: Op) -> None:
    """``x[at[i, j], j] = value[i, j]``, or added or reduced there: like `gather`."""
    x, dim, at = op.args[:3]
    value = op.arg(3, "src", op.kwargs.get("value"))
    written = (value,) if isinstance(value, Tensor) and value.dim() else ()
    _one_by_one(op, dim, (x, at, *written), "writes")


def _one_by_one(op: Op, dim: int, tensors: tuple[Tensor, ...], verb: str) -> None:
    """Freeze the axis whose positions have numbers; tie the tensors along all others.

    An axis of which only the first positions are used cannot be cut.
    """
    shape, reason = op.shape(), f"{op.where} {verb} positions of it by number"
    ids: list[AxisIds] = []
    for d in range(len(shape)):
        axes = [op.ids(t)[d] for t in tensors]
        if d == dim % len(shape) or any(t.shape[d] != shape[d] for t in tensors):
            op.freeze(tuple(axes), reason)
            ids.append(None)
            continue
        for other in axes[1:]:
            axes[0] = op.unify(axes[0], other, shape[d])
        ids.append(axes[0])
    op.set(tuple(ids))


@rule("aten::masked_select")
def masked_select(op: Op) -> None:
    """Take elements by mask from everywhere: all axes must keep their width."""
    for tensor in op.tensors():
        op.freeze(op.ids(tensor), f"{op.where} looks elements up by number")
    op.set_none()
