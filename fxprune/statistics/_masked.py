"""What the gated twins share: masked sums and counts.

A mask `m` broadcasts against its tensor from the right. Bool masks are hard: a closed position
counts as nothing even where it holds inf or NaN. Floating-point masks are soft.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["blank", "count", "filled", "moments", "widened", "without_zero"]

_HALF = (torch.float16, torch.bfloat16)


def widened(x: Tensor) -> Tensor:
    """Return a half-precision tensor as float32, in which sums are taken; others as they are."""
    return x.float() if x.dtype in _HALF else x


def blank(x: Tensor, mask: Tensor) -> Tensor:
    """Return `x` with 0 where a hard mask is closed; a soft mask weighs later."""
    return torch.where(mask, x, 0) if mask.dtype is torch.bool else x


def filled(x: Tensor, mask: Tensor, sign: int) -> Tensor:
    """Return `x` with the worst value where the mask is closed: lowest for sign 1, highest for -1.

    A soft gate `g` adds ``sign * log(g)``: nothing at 1, and the worst value at 0.
    """
    if not x.dtype.is_floating_point:
        info = torch.iinfo(x.dtype)
        return torch.where(mask > 0, x, info.min if sign > 0 else info.max)
    worst = -sign * float("inf")
    if mask.dtype is torch.bool:
        return torch.where(mask, x, worst)
    alive = mask > 0
    shift = sign * torch.where(alive, mask, 1).log()
    return torch.where(alive, x + shift.to(x.dtype), worst)


def without_zero(total: Tensor) -> Tensor:
    """Return a count with 1 for 0, so that dividing by it gives 0 where nothing is counted."""
    return torch.where(total == 0, 1, total)


def count(mask: Tensor, shape: Sequence[int], dims: tuple[int, ...]) -> Tensor:
    """Return how many positions over `dims` (not negative) of a tensor a mask keeps.

    Returns
    -------
    Tensor, floating-point or integer
        One number for each position of the mask's axes that are not among `dims`, these last kept
        as size 1; a soft mask's sum.
    """
    ndim, rest = len(shape), 1
    summed = []
    for d in dims:
        own = d - ndim + mask.dim()
        if own < 0 or mask.shape[own] == 1:
            rest = rest * shape[d]
        else:
            summed.append(own)
    total = mask.sum(summed, keepdim=True) if summed else mask.long()
    return (total if mask.dtype is torch.bool else without_zero(total)) * rest


def moments(
    x: Tensor, mask: Tensor, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, centred values, sum of squares around the mean, and the count.

    Parameters
    ----------
    x : Tensor
        Not of half precision.
    mask : Tensor
    dims : tuple of int
        The axes the statistic runs over, not negative; they stay with size 1.
    """
    x, m = blank(x, mask), mask.to(x.dtype)
    total = count(mask, x.shape, dims).to(x.dtype)
    mean = (x * m).sum(dims, keepdim=True) / total
    centred = x - mean
    return mean, centred, (centred.square() * m).sum(dims, keepdim=True), total
