"""Take what stays of a tensor: some positions of its axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.plan import Keep, Plan

__all__ = ["kept_positions", "take"]


def kept_positions(plan: Plan, name: str, keep: Keep) -> tuple[Tensor | None, ...]:
    """Return which positions a keep-vector leaves of a parameter or buffer of the plan.

    Returns
    -------
    tuple of (int64 Tensor or None)
        By axis; None where all stay.
    """
    found: list[Tensor | None] = []
    for dim in range(len(plan.shapes[name])):
        ids = plan.axes.get((name, dim))
        kept = None if ids is None else plan.kept(ids, keep)
        if kept is None or kept.all():
            found.append(None)
        else:
            found.append(torch.from_numpy(np.flatnonzero(kept)))
    return tuple(found)


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
