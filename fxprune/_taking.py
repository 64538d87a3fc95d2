"""Take some positions of a tensor's axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["take"]


def take(tensor: Tensor, positions: Sequence[Tensor | None]) -> Tensor:
    """Return what stays of a tensor, in the memory format that it had.

    Indexing alone returns contiguous tensors: a model in ``torch.channels_last`` would leave it.

    Parameters
    ----------
    tensor : Tensor
    positions : sequence of (int64 Tensor or None)
        By axis, on any device; None where all stay.
    """
    small = tensor
    for dim, at in enumerate(positions):
        if at is not None:
            small = small.index_select(dim, at.to(tensor.device))
    if small is tensor or tensor.layout is not torch.strided:  # such as a sparse gradient
        return small
    like = torch.empty_like(tensor[tuple(slice(size) for size in small.shape)])
    return small if like.stride() == small.stride() else like.copy_(small)
