"""Gates that are random, nearly binary and differentiable."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["OPEN_BIAS", "TEMPERATURE", "logistic_noise", "relax", "round_straight_through"]

TEMPERATURE = 0.4
OPEN_BIAS = 3.0
"""Added to every logit, so that a run starts with open gates."""


def logistic_noise(n: int, generator: torch.Generator) -> Tensor:
    """Return the difference of two Gumbel variables, shape (n,): the noise of a binary choice.

    Its median is 0, so the noise-free gate is the likelier of the two values.

    References
    ----------
    .. [1] Maddison et al., "The Concrete Distribution", ICLR 2017, appendix B.
    """
    uniform = torch.rand(n, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.logit(uniform, eps=1e-9).float()


def relax(
    logits: Tensor,
    noise: Tensor | float = 0.0,
    temperature: float = TEMPERATURE,
    bias: float = OPEN_BIAS,
) -> Tensor:
    """Return soft gates in (0, 1): ``sigmoid((logits + noise + bias) / temperature)``.

    Parameters
    ----------
    logits : Tensor, shape (n_units,)
    noise : Tensor, shape (n_units,), or 0

    References
    ----------
    .. [1] Wu et al., "Auto-Train-Once", CVPR 2024, section 3.2.
    """
    return torch.sigmoid((logits + noise + bias) / temperature)


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, soft: Tensor) -> Tensor:
        return (soft > 0.5).to(soft.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


def round_straight_through(soft: Tensor) -> Tensor:
    """Return gates in {0, 1}; gradients pass as if nothing had been rounded."""
    rounded: Tensor = _Round.apply(soft)
    return rounded
