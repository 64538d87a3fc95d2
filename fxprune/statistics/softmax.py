"""Gated softmax, log-softmax and log-sum-exp: the sum of exponentials over kept positions only.

``Z = sum(m exp(x))``. A soft mask weighs the sum and not the result: the gate in front of whatever
sums the result up weighs that, so that a position has the weight ``m exp(x) / Z`` in all.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.statistics._masked import filled, widened
from fxprune.statistics.table import twin

__all__ = ["gated_log_softmax", "gated_logsumexp", "gated_softmax"]

_ATEN = torch.ops.aten


def _arguments(x: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, Tensor]:
    """Return the axis, and the input in the dtype asked for.

    The positional arguments differ between ``F.softmax`` (its third is a stack level) and the rest.
    """
    dim = args[0] if args else kwargs.get("dim")
    if dim is None:  # torch's old default
        dim = 0 if x.dim() in (0, 1, 3) else 1
    dtype = next((a for a in args if isinstance(a, torch.dtype)), kwargs.get("dtype"))
    return dim, x if dtype is None else x.to(dtype)


def _log_total(x: Tensor, mask: Tensor, dims: Any) -> Tensor:
    """Return ``log sum(m exp(x))`` over axes that stay with size 1."""
    closed = filled(x, mask > 0, 1)
    if mask.dtype is torch.bool:
        return torch.logsumexp(closed, dims, keepdim=True)
    top = closed.amax(dims, keepdim=True).detach()
    top = torch.where(top.isfinite(), top, 0)
    terms = mask.to(x.dtype) * _exp(x - top)
    return terms.sum(dims, keepdim=True).log() + top


def _exp(x: Tensor) -> Tensor:
    """Return ``exp(x)``, bounded: a closed position times a gate of 0 must be 0, not NaN."""
    return x.clamp_max(0.9 * math.log(torch.finfo(x.dtype).max)).exp()


@twin("softmax", F.softmax, torch.softmax, _ATEN.softmax.int)
def gated_softmax(
    input: Tensor,  # torch's own name, by which callers may pass it
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """``exp(x) / sum(m exp(x))`` along the axis ``F.softmax`` would work along."""
    dim, x = _arguments(input, args, kwargs)
    if mask is None:
        return torch.softmax(x, dim)
    if mask.dtype is torch.bool:
        return torch.softmax(filled(x, mask, 1), dim)
    high = widened(x)
    return _exp(high - _log_total(high, mask, dim)).to(x.dtype)


@twin("log_softmax", F.log_softmax, torch.log_softmax, _ATEN.log_softmax.int)
def gated_log_softmax(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """``x - log sum(m exp(x))`` along the axis ``F.log_softmax`` would work along."""
    dim, x = _arguments(input, args, kwargs)
    if mask is None:
        return torch.log_softmax(x, dim)
    high = widened(x)
    return (high - _log_total(high, mask, dim)).to(x.dtype)


@twin("logsumexp", torch.logsumexp, _ATEN.logsumexp.default)
def gated_logsumexp(
    input: Tensor,
    dim: Any,
    keepdim: bool = False,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """``log sum(m exp(x))`` over one or several axes."""
    if mask is None:
        return torch.logsumexp(input, dim, keepdim)
    total = _log_total(widened(input), mask, dim).to(input.dtype)
    return total if keepdim else total.squeeze(dim)
