"""Gated normalisation: layer, RMS, group and batch norm with statistics over kept positions.

With `m` the mask, ``mean = sum(m x) / sum(m)`` and ``var = sum(m (x - mean)^2) / sum(m)``. The
result at a closed position means nothing; the gates in front of whatever reads it close it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.statistics._masked import blank, count, moments, widened, without_zero
from fxprune.statistics.table import twin

__all__ = [
    "gated_aten_batch_norm",
    "gated_batch_norm",
    "gated_group_norm",
    "gated_layer_norm",
    "gated_rms_norm",
]

_ATEN = torch.ops.aten


@twin(F.layer_norm, torch.layer_norm, _ATEN.layer_norm.default)
def gated_layer_norm(
    input: Tensor,  # torch's own name, by which callers may pass it
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Layer normalisation with statistics over the kept positions only.

    Parameters
    ----------
    input : Tensor, shape (..., *normalized_shape)
    normalized_shape : sequence of int
    weight, bias : Tensor, optional, shape normalized_shape
    eps : float
    cudnn_enable : bool
        Has no effect; torch has it too.
    mask : Tensor, optional
        Gates in [0, 1], broadcastable to `normalized_shape`. Without it this is ``F.layer_norm``.

    Returns
    -------
    Tensor, shape of input
    """
    if mask is None:
        return F.layer_norm(input, list(normalized_shape), weight, bias, eps)
    dims = _last(input, len(normalized_shape))
    _, centred, squares, total = moments(widened(input), mask, dims)
    y = centred * torch.rsqrt(squares / total + eps)
    return _affine(y.to(input.dtype), weight, bias)


@twin(F.rms_norm, torch.rms_norm, _ATEN.rms_norm.default)
def gated_rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Root mean square normalisation with the mean over the kept positions only.

    Parameters and result as for `gated_layer_norm`; there is no bias.
    """
    if mask is None:
        return F.rms_norm(input, list(normalized_shape), weight, eps)
    dims = _last(input, len(normalized_shape))
    high = blank(widened(input), mask)
    total = count(mask, input.shape, dims)
    squares = (high.square() * mask.to(high.dtype)).sum(dims, keepdim=True)
    eps = torch.finfo(high.dtype).eps if eps is None else eps
    y = high * torch.rsqrt(squares / total + eps)
    return _affine(y.to(input.dtype), weight, None)


@twin(F.group_norm, torch.group_norm, _ATEN.group_norm.default)
def gated_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Group normalisation with each group's statistics over its kept positions only.

    Parameters
    ----------
    input : Tensor, shape (N, C, ...)
    num_groups : int
        A divisor of C. A group of which nothing is kept counts as well.
    weight, bias : Tensor, optional, shape (C,)
    eps : float
    cudnn_enabled : bool
        Has no effect; torch has it too.
    mask : Tensor, optional
        Gates in [0, 1], broadcastable to (C, ...). Without it this is ``F.group_norm``.

    Returns
    -------
    Tensor, shape of input
    """
    if mask is None:
        return F.group_norm(input, num_groups, weight, bias, eps)
    batch, channels, *places = input.shape
    inside = (num_groups, channels // num_groups)
    lead = (1,) * (input.dim() - 1 - mask.dim())
    whole = mask.reshape(*lead, *mask.shape)
    whole = whole.expand(channels, *whole.shape[1:])
    m = whole.reshape(*inside, *whole.shape[1:])
    x = blank(widened(input).reshape(batch, *inside, *places), m)
    dims = tuple(range(2, x.dim()))
    total = without_zero(count(m, x.shape, dims)).to(x.dtype)
    weights = m.to(x.dtype)
    centred = x - (x * weights).sum(dims, keepdim=True) / total
    variance = (centred.square() * weights).sum(dims, keepdim=True) / total
    y = (centred * torch.rsqrt(variance + eps)).reshape(input.shape)
    return _affine(y.to(input.dtype), _column(weight, y), _column(bias, y))


def _without_running_statistics(node: fx.Node) -> bool:
    names = ("input", "running_mean", "running_var")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given.get("running_mean") is None and given.get("running_var") is None


@twin(F.batch_norm, fits=_without_running_statistics)
def gated_batch_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Batch normalisation without running statistics, over the kept positions of other axes.

    Weight standardisation is often written so: the channels of ``weight.reshape(1, O, -1)`` are the
    weight's outputs, and the statistics run over its prunable inputs.

    Parameters
    ----------
    input : Tensor, shape (N, C, ...)
    running_mean, running_var : None
    weight, bias : Tensor, optional, shape (C,)
    training, momentum
        As in torch; they have no effect without running statistics.
    eps : float
    mask : Tensor, optional
        Gates in [0, 1] of axes after C, broadcastable to the input. Without it this is
        ``F.batch_norm``.

    Returns
    -------
    Tensor, shape of input
    """
    if mask is None:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    dims = (0, *range(2, input.dim()))
    _, centred, squares, total = moments(widened(input), mask, dims)
    y = centred * torch.rsqrt(squares / total + eps)
    return _affine(y.to(input.dtype), _column(weight, y), _column(bias, y))


def _aten_without_running_statistics(node: fx.Node) -> bool:
    return len(node.args) > 4 and node.args[3] is None and node.args[4] is None


@twin(torch.batch_norm, _ATEN.batch_norm.default, fits=_aten_without_running_statistics)
def gated_aten_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *options: Any,
    mask: Tensor | None = None,
) -> Tensor:
    """`gated_batch_norm` with ATen's order of arguments."""
    training, momentum, eps, *_ = options
    return gated_batch_norm(
        input, running_mean, running_var, weight, bias, training, momentum, eps, mask=mask
    )


def _last(x: Tensor, number: int) -> tuple[int, ...]:
    return tuple(range(x.dim() - number, x.dim()))


def _column(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a parameter of the channels (axis 1 of `x`), shaped to broadcast."""
    return None if parameter is None else parameter.view(-1, *(1,) * (x.dim() - 2))


def _affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias
