"""The resource term: how far what is kept lies from the budget."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["resource_term"]

_LEAST = 0.1
"""Share of the target below which the term goes on in a straight line."""


def resource_term(kept: Tensor, target: float) -> Tensor:
    """Return ``log(max(kept, target) / target)``, or its mirror below the target.

    Parameters
    ----------
    kept : Tensor, no axes
        Share of the dense model's MACs or parameters; gradients reach it.
    target : float
        The share asked for.

    Returns
    -------
    Tensor, no axes
        0 when the two are equal; the same for twice the target as for half of it.

    Notes
    -----
    Random gates may close all there is, so far below the target the logarithm goes on as its
    tangent: finite, and with a slope that leads back up.

    References
    ----------
    .. [1] Wu et al., "Auto-Train-Once", CVPR 2024, equation 5.
    """
    least = kept.new_tensor(_LEAST * target)
    held = torch.maximum(kept, least)
    return torch.abs(torch.log(held / target)) + (held - kept) / least
