"""Agreement between the processes of a distributed run."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["average_over_ranks", "same_on_all_ranks"]


def average_over_ranks(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks of the default process group.

    Every rank gets the very same values. Without a process group it is the tensor itself.
    """
    if not _several_ranks():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    total /= dist.get_world_size()
    # A reduction may be summed in another order elsewhere: one rank's result is everybody's.
    dist.broadcast(total, src=0)
    return total


def same_on_all_ranks(number: int, device: torch.device) -> int:
    """Return rank 0's number; `device` is one that the process group can send from."""
    if not _several_ranks():
        return number
    sent = torch.tensor(number, dtype=torch.int64, device=device)
    dist.broadcast(sent, src=0)
    return int(sent)


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
