"""Operators that mix the positions of an axis: reductions, softmax, sorting, pooling, resampling.

On the axes they do not touch, the ids pass. A sum over an axis that carries ids is a contraction:
the gate before it makes it right. A mean, a maximum or a softmax over such an axis would change its
value with the channels: it takes the gates as a mask where it has a gated twin
(`fxprune.statistics`), elsewhere the axis is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fxprune.analysis.axes import AxisIds
from fxprune.analysis.op import Op, flat_tensors
from fxprune.rules._registry import rule
from fxprune.rules.pointwise import pointwise

__all__ = ["along", "cross", "reduce", "resample", "topk"]


_SUMS = ("aten::sum", "aten::nansum")
_NORMS = ("aten::norm", "aten::linalg_vector_norm")
_PLACES = {**dict.fromkeys(_NORMS, 2), "aten::kthvalue": 2}  # of the argument `dim`, where not 1
_LAST = dict.fromkeys(("aten::mode", "aten::kthvalue"), -1)  # they reduce the last axis by default


def _dims(dims: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        return tuple(range(ndim))
    return tuple(d % ndim for d in ([dims] if isinstance(dims, int) else dims)) if ndim else ()


@rule(
    "aten::sum",
    "aten::mean",
    "aten::amax",
    "aten::amin",
    "aten::max",
    "aten::min",
    "aten::argmax",
    "aten::argmin",
    "aten::prod",
    "aten::all",
    "aten::any",
    "aten::var",
    "aten::std",
    "aten::var_mean",
    "aten::std_mean",
    "aten::norm",
    "aten::linalg_vector_norm",
    "aten::logsumexp",
    "aten::median",
    "aten::nansum",
    "aten::nanmedian",
    "aten::aminmax",
    "aten::mode",
    "aten::kthvalue",
)
def reduce(op: Op) -> None:
    """Reduce over some axes, or over all."""
    x = op.args[0]
    if len(op.tensors()) == 2:  # max(a, b) and min(a, b)
        pointwise(op)
        return
    position = _PLACES.get(op.name, 1)
    dims = _dims(op.arg(position, "dim", _LAST.get(op.name)), x.dim())
    ids = op.ids(x)
    if op.name in _SUMS or (op.name in _NORMS and _ignores_zeros(op)):
        op.contract(x, dims)
    else:
        kind = op.name.removeprefix("aten::")
        op.statistic(x, dims, f"{op.where} takes a statistic ({kind}) over it")
    for out in flat_tensors(op.out):
        keep = out.dim() == x.dim()
        op.set(
            tuple(None if d in dims else i for d, i in enumerate(ids) if keep or d not in dims), out
        )


def _ignores_zeros(op: Op) -> bool:
    """Return whether a vector norm stays the same when zeros are left out."""
    order = op.arg(1, "ord", op.kwargs.get("p", 2))
    return order is None or (isinstance(order, (int, float)) and order >= 0)


@rule(
    "aten::softmax",
    "aten::_softmax",
    "aten::_safe_softmax",
    "aten::log_softmax",
    "aten::_log_softmax",
    "aten::cumsum",
    "aten::cumprod",
    "aten::logcumsumexp",
    "aten::cummax",
    "aten::cummin",
    "aten::sort",
    "aten::argsort",
)
def along(op: Op) -> None:
    """Mix the positions of one axis and keep its width."""
    x = op.args[0]
    (dim,) = _dims(op.arg(1, "dim", -1), x.dim()) or (0,)
    ids = list(op.ids(x))
    if ids:
        kind = op.name.removeprefix("aten::").strip("_")
        if not op.statistic(x, [dim], f"{op.where} works along it ({kind})"):
            ids[dim] = None
    for out in flat_tensors(op.out):
        op.set(tuple(ids), out)


@rule("aten::topk")
def topk(op: Op) -> None:
    """Take the largest positions of one axis, and tell their numbers."""
    x = op.args[0]
    (dim,) = _dims(op.arg(2, "dim", -1), x.dim()) or (0,)
    ids = list(op.ids(x))
    if ids:
        op.freeze(ids[dim], f"{op.where} takes the largest positions of it")
        ids[dim] = None
    for out in op.out:
        op.set(tuple(ids), out)


@rule("aten::linalg_cross")
def cross(op: Op) -> None:
    """Cross product of vectors along one axis, of width 3."""
    dim = op.arg(2, "dim", -1) % len(op.shape())
    pointwise(op)
    ids = list(op.ids(op.out))
    op.freeze(ids[dim], f"{op.where} takes a cross product along it")
    ids[dim] = None
    op.set(tuple(ids))


_ONE = (
    "aten::max_pool1d aten::max_pool1d_with_indices aten::avg_pool1d aten::adaptive_avg_pool1d "
    "aten::adaptive_max_pool1d aten::upsample_nearest1d aten::_upsample_nearest_exact1d "
    "aten::upsample_linear1d "
    "aten::reflection_pad1d aten::replication_pad1d"
).split()
_TWO = (
    "aten::max_pool2d aten::max_pool2d_with_indices aten::avg_pool2d aten::_adaptive_avg_pool2d "
    "aten::adaptive_avg_pool2d aten::adaptive_max_pool2d aten::fractional_max_pool2d "
    "aten::upsample_nearest2d "
    "aten::_upsample_nearest_exact2d aten::upsample_bilinear2d aten::_upsample_bilinear2d_aa "
    "aten::upsample_bicubic2d "
    "aten::_upsample_bicubic2d_aa aten::reflection_pad2d aten::replication_pad2d "
    "aten::grid_sampler_2d"
).split()
_THREE = (
    "aten::max_pool3d aten::max_pool3d_with_indices aten::avg_pool3d aten::_adaptive_avg_pool3d "
    "aten::adaptive_avg_pool3d aten::adaptive_max_pool3d aten::upsample_nearest3d "
    "aten::_upsample_nearest_exact3d "
    "aten::upsample_trilinear3d aten::reflection_pad3d aten::replication_pad3d "
    "aten::grid_sampler_3d"
).split()
_SPATIAL = {name: n for n, names in ((1, _ONE), (2, _TWO), (3, _THREE)) for name in names}


@rule(*_SPATIAL)
def resample(op: Op) -> None:
    """Pooling, resampling and mirror padding: work inside each channel on the trailing axes."""
    x: Tensor = op.args[0]
    spatial = _SPATIAL[op.name]
    op.freeze(op.ids(x)[-spatial:], f"{op.where} works on it as on pixels")
    for other in op.tensors()[1:]:
        op.freeze(op.ids(other), f"{op.where} reads it as places, not as channels")
    ids: tuple[AxisIds, ...] = (*op.ids(x)[:-spatial], *(None,) * spatial)
    for out in flat_tensors(op.out):
        op.set(ids, out, moved=x)  # a channel of zeros stays one: gating before is gating after
