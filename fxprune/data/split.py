"""Hold back a share of every class."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["stratified"]


def stratified(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the indices for training and testing; every class gives the same share to testing.

    Parameters
    ----------
    labels : Tensor, shape (n,), int64
        Classes, numbered from 0.
    share : float in (0, 1)
        For testing; rounded for every class, but at least one, and one image stays for training.
    generator : torch.Generator
        Decides which, and the order of both parts.

    Returns
    -------
    tuple of (Tensor, Tensor)
        Indices into `labels`, int64, in random order. A class with one member is not for testing.
    """
    train, test = [], []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = min(max(1, round(share * len(members))), len(members) - 1)
        test.append(members[:held_out])
        train.append(members[held_out:])
    first, second = (
        part[torch.randperm(len(part), generator=generator)]
        for part in (torch.cat(train), torch.cat(test))
    )
    return first, second
