"""The channel ids of a tensor, one run per axis, and how reshapes carry them.

A tensor in memory is a full rectangle, so what is kept of it is always a product of one kept set
per axis. The ids of a tensor are therefore a tuple with one entry per axis: a run of ids, or None
where the axis has nothing prunable. (Merging two axes that both carry ids makes composed ids, see
`fxprune.analysis.ids`.)

Reshape algebra
---------------
A reshape factors into blocks of neighbouring axes with equal products,
``(s1, .., sk) -> (t1, .., tm)``. Inside a block the axes are merged into one (repeat and tile, or
composition) and split again. After a split, an axis along which the ids do not vary carries none.
When they vary along several, what remains must still be a rectangle: each of these axes gets ids of
its own, and position ``(i, j)`` of the split axis becomes the composition of the two, kept when
both are. A query projection split into (heads, head_dim) is so pruned by whole heads and by
positions that all heads share.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fxprune.analysis.ids import ALWAYS, Ids, IdSpace, Owner

__all__ = ["AxisIds", "TensorIds", "concat_ids", "none_ids", "reshape_blocks", "reshape_ids"]

AxisIds = Ids | None
TensorIds = tuple[AxisIds, ...]


def none_ids(ndim: int) -> TensorIds:
    """Return the ids of a tensor with nothing prunable."""
    return (None,) * ndim


def concat_ids(parts: Sequence[tuple[AxisIds, int]]) -> AxisIds:
    """Return the ids of an axis made by joining axes given as (ids, width)."""
    if all(ids is None for ids, _ in parts):
        return None
    return np.concatenate([np.full(n, ALWAYS) if ids is None else ids for ids, n in parts])


def reshape_ids(
    space: IdSpace, ids: TensorIds, old: Sequence[int], new: Sequence[int], where: str
) -> TensorIds:
    """Return the ids after a reshape from shape `old` to shape `new`.

    Ids that must stay a rectangle are tied.
    """
    result: list[AxisIds] = [None] * len(new)
    for ins, outs in reshape_blocks(old, new):
        if all(ids[i] is None for i in ins):
            continue
        merged = _merge(space, [ids[i] for i in ins], [old[i] for i in ins], where)
        split = _split(space, merged, [new[j] for j in outs], where)
        for j, axis in zip(outs, split, strict=True):
            result[j] = axis
    return tuple(result)


def reshape_blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of axes (size-1 axes left out) with equal products."""
    left = [i for i, n in enumerate(old) if n != 1]
    right = [j for j, n in enumerate(new) if n != 1]
    if math.prod(old) == 0:
        return
    while left and right:
        ins, outs = [left.pop(0)], [right.pop(0)]
        a, b = old[ins[0]], new[outs[0]]
        while a != b:
            if a < b:
                ins.append(left.pop(0))
                a *= old[ins[-1]]
            else:
                outs.append(right.pop(0))
                b *= new[outs[-1]]
        yield ins, outs


def _merge(space: IdSpace, runs: list[AxisIds], sizes: list[int], where: str) -> Ids:
    merged: AxisIds = None
    width = 1
    for run, size in zip(runs, sizes, strict=True):
        before = None if merged is None else np.repeat(merged, size)
        after = None if run is None else np.tile(run, width)
        width *= size
        if before is not None and after is not None:
            merged = space.compose(before, after, Owner(where, 0, "node"))
        else:
            merged = after if before is None else before
    if merged is None:
        raise ValueError("nothing to merge")
    return merged


def _split(space: IdSpace, merged: Ids, sizes: list[int], where: str) -> list[AxisIds]:
    if len(sizes) == 1:
        return [merged]
    box = merged.reshape(sizes)
    varying = _varying(space.find(merged).reshape(sizes))
    if not varying:
        space.freeze(merged, f"{where} spreads one channel over several axes")
    if len(varying) > 1:
        factors = _factor(space, merged, sizes)
        return _compose(space, merged, sizes, varying, where) if factors is None else factors
    return [_line(box, axis) if axis in varying else None for axis in range(len(sizes))]


def _compose(
    space: IdSpace, merged: Ids, sizes: list[int], varying: list[int], where: str
) -> list[AxisIds]:
    """Give every varying axis ids of its own and tie the split axis to their compositions."""
    roots = space.find(merged).reshape(sizes)
    result: list[AxisIds] = [None] * len(sizes)
    product: AxisIds = None
    for axis in varying:
        slices = np.moveaxis(roots, axis, 0).reshape(sizes[axis], -1)
        _, same = np.unique(slices, axis=0, return_inverse=True)
        line = space.fresh(int(same.max()) + 1, Owner(where, axis, "node"))[same]
        result[axis] = line
        spread = [n if a == axis else 1 for a, n in enumerate(sizes)]
        whole = np.broadcast_to(line.reshape(spread), sizes).reshape(-1)
        product = (
            whole if product is None else space.compose(product, whole, Owner(where, 0, "node"))
        )
    if product is not None:
        space.unify(merged, product, where, f"{where} splits an axis of which a part is fixed")
    return result


def _varying(box: Ids) -> list[int]:
    return [
        axis
        for axis, size in enumerate(box.shape)
        if size > 1 and (box != np.take(box, [0], axis=axis)).any()
    ]


def _line(box: Ids, axis: int) -> Ids:
    return box[tuple(slice(None) if a == axis else 0 for a in range(box.ndim))].copy()


def _factor(space: IdSpace, merged: Ids, sizes: list[int]) -> list[AxisIds] | None:
    """Undo an earlier merge: return its two factors when each varies along one axis of its own."""
    parts = space.parts(merged)
    if parts is None:
        return None
    result: list[AxisIds] = [None] * len(sizes)
    for part in parts:
        box = part.reshape(sizes)
        varying = _varying(box)
        if len(varying) != 1 or result[varying[0]] is not None:
            return None
        result[varying[0]] = _line(box, varying[0])
    return result
