"""Gated twins of torch's own modules: the plain ones with a mask as their second input.

Parameters and names stay those of the plain module, which shares them.
"""

from __future__ import annotations

from torch import Tensor, nn

from fxprune.statistics.norms import gated_group_norm, gated_layer_norm, gated_rms_norm
from fxprune.statistics.softmax import gated_log_softmax, gated_softmax

__all__ = [
    "GatedGroupNorm",
    "GatedLayerNorm",
    "GatedLogSoftmax",
    "GatedRMSNorm",
    "GatedSoftmax",
    "GatedSoftmax2d",
    "is_gated",
    "plain_type",
    "to_gated",
    "to_plain",
]


class GatedLayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with a mask, see `gated_layer_norm`."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise over the kept positions."""
        shape = self.normalized_shape
        return gated_layer_norm(x, shape, self.weight, self.bias, self.eps, mask=mask)


class GatedRMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` with a mask, see `gated_rms_norm`."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise over the kept positions."""
        return gated_rms_norm(x, self.normalized_shape, self.weight, self.eps, mask=mask)


class GatedGroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` with a mask, see `gated_group_norm`."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise over the kept positions of each group."""
        return gated_group_norm(x, self.num_groups, self.weight, self.bias, self.eps, mask=mask)


class GatedSoftmax(nn.Softmax):
    """`nn.Softmax` with a mask, see `gated_softmax`."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Divide by the kept positions' sum."""
        return gated_softmax(x, self.dim, mask=mask)


class GatedSoftmax2d(nn.Softmax2d):
    """`nn.Softmax2d` with a mask, see `gated_softmax`."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Divide by the sum over the kept channels."""
        return gated_softmax(x, -3, mask=mask)


class GatedLogSoftmax(nn.LogSoftmax):
    """`nn.LogSoftmax` with a mask, see `gated_log_softmax`."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Subtract the logarithm of the kept positions' sum."""
        return gated_log_softmax(x, self.dim, mask=mask)


_GATED: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: GatedLayerNorm,
    nn.RMSNorm: GatedRMSNorm,
    nn.GroupNorm: GatedGroupNorm,
    nn.Softmax: GatedSoftmax,
    nn.Softmax2d: GatedSoftmax2d,
    nn.LogSoftmax: GatedLogSoftmax,
}
_PLAIN = {gated: plain for plain, gated in _GATED.items()}


def is_gated(module: nn.Module | None) -> bool:
    """Return whether a module is a gated twin."""
    return type(module) in _PLAIN


def plain_type(module: nn.Module) -> type[nn.Module]:
    """Return the type of a module, for a gated twin that of the plain module."""
    return _PLAIN.get(type(module), type(module))


def to_gated(module: nn.Module) -> nn.Module | None:
    """Return the gated twin of a module (itself if it is one), or None if it has none."""
    return module if is_gated(module) else _recast(module, _GATED.get(type(module)))


def to_plain(gated: nn.Module) -> nn.Module:
    """Return the plain twin of a gated module, and any other module itself."""
    return _recast(gated, _PLAIN.get(type(gated))) or gated


def _recast(module: nn.Module, kind: type[nn.Module] | None) -> nn.Module | None:
    """Return a module of another type with the same state: parameters, hooks and all."""
    if kind is None:
        return None
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    return made
