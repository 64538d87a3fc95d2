"""Gates: the modules that insert_gates puts into the graph.

One flat vector holds the gate of every unit, with a constant 1 behind it for positions that are
always kept. A gate node multiplies a tensor by ``vector[index]`` along one axis, where `index`
holds the units of that axis' positions. Zero there equals removal exactly, because the gate sits
behind activation and bias, on the edge into the operator that sums over the axis.

While all gates are open the vector node returns None and every gate returns its input untouched, so
that an ungated model costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Gate", "GateVector", "GatedLayerNorm", "StatisticMask", "gated_layer_norm"]


class GateVector(nn.Module):
    """The one vector of all unit gates.

    Parameters
    ----------
    n_units : int

    Attributes
    ----------
    value : Tensor, shape (n_units + 1,)
        Hard gates, 0 or 1; the last entry is always 1. A buffer.
    soft : Tensor or None, shape (n_units,)
        When set, used instead of `value`; gradients reach it.
    """

    value: Tensor

    def __init__(self, n_units: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(n_units + 1))
        self.soft: Tensor | None = None
        self.is_open = True

    def forward(self) -> Tensor | None:
        """Return the vector, shape (n_units + 1,), or None while all gates are open.

        Hard gates come as bool: a closed gate then gives 0 even where the value is inf or NaN.
        """
        if self.soft is not None:
            return torch.cat([self.soft, self.soft.new_ones(1)])
        return None if self.is_open else self.value > 0.5

    def set_hard(self, keep: Tensor) -> None:
        """Set hard gates from a bool tensor of shape (n_units,)."""
        with torch.no_grad():
            self.value[:-1].copy_(keep)
        self.is_open = bool(keep.all())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "soft": None}  # belongs to one step of one training run

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Accept a dense model's state_dict, which has no gates, and leave them as they are."""
        given = dict(state_dict)
        given.setdefault(f"{prefix}value", self.value)
        super()._load_from_state_dict(given, prefix, *args, **kwargs)
        self.is_open = bool((self.value == 1).all())


class _Lookup(nn.Module):
    """Looks up the gates of one axis.

    Parameters
    ----------
    index : int Tensor, shape (k, width, 1, ..)
        For each position the k units it needs (padded with the always-kept entry), shaped to
        broadcast.
    """

    index: Tensor

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)

    def values(self, vector: Tensor) -> Tensor:
        """Return the gates of the axis, shape (width, 1, ..)."""
        found = vector[self.index]
        if len(found) == 1:
            return found[0]
        return found.all(0) if found.dtype is torch.bool else found.prod(0)

    def extra_repr(self) -> str:
        return f"width={self.index.shape[1]}"


class Gate(_Lookup):
    """Multiply a tensor by the gates of one of its axes."""

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """Return ``x * vector[index]``, or `x` itself while all gates are open."""
        if vector is None:
            return x
        gates = self.values(vector)
        return torch.where(gates, x, 0) if gates.dtype is torch.bool else x * gates.to(x.dtype)


class StatisticMask(_Lookup):
    """Give the gates of a normalised axis to the gated norm."""

    def forward(self, vector: Tensor | None) -> Tensor | None:
        """Return the gates, shape (width, 1, ..), or None while all are open."""
        return None if vector is None else self.values(vector)


def gated_layer_norm(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    mask: Tensor | None = None,
) -> Tensor:
    """Layer normalisation with statistics over the kept positions only.

    Parameters
    ----------
    x : Tensor, shape (..., *normalized_shape)
    normalized_shape : tuple[int, ...]
    weight, bias : Tensor, optional, shape normalized_shape
    eps : float
    mask : Tensor, optional
        Gates in [0, 1], broadcastable to `normalized_shape`. Without it this is ``F.layer_norm``.

    Returns
    -------
    Tensor, shape of x
        With ``m`` the mask: ``mean = sum(m x) / sum(m)``, ``var = sum(m (x - mean)^2) / sum(m)``
        over the normalised axes.
    """
    if mask is None:
        return F.layer_norm(x, normalized_shape, weight, bias, eps)
    dims = tuple(range(-len(normalized_shape), 0))
    high = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    high = torch.where(mask, high, 0) if mask.dtype is torch.bool else high
    m = mask.to(high.dtype).expand(normalized_shape)
    total = m.sum()
    centred = high - (high * m).sum(dims, keepdim=True) / total
    variance = (centred.square() * m).sum(dims, keepdim=True) / total
    y = (centred * torch.rsqrt(variance + eps)).to(x.dtype)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


class GatedLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that takes the mask as a second input.

    Parameters and names stay those of the plain one.
    """

    @classmethod
    def from_plain(cls, plain: nn.LayerNorm) -> GatedLayerNorm:
        """Return the gated twin of a LayerNorm, sharing its parameters."""
        gated = cls.__new__(cls)
        gated.__dict__.update(plain.__dict__)
        return gated

    def to_plain(self) -> nn.LayerNorm:
        """Return the plain twin, sharing the parameters."""
        plain = nn.LayerNorm.__new__(nn.LayerNorm)
        plain.__dict__.update(self.__dict__)
        return plain

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `gated_layer_norm`."""
        return gated_layer_norm(
            x, tuple(self.normalized_shape), self.weight, self.bias, self.eps, mask
        )
