"""Recurrent layers with gates on columns of their weights.

Hidden units read each other inside the layer, where no gate can stand. ``W (g h) = (W diag(g)) h``:
the layer runs with the columns of these weights multiplied by the gates, see
`fxprune.rules.recurrent`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fxprune.gates import StatisticMask

__all__ = ["GATED_LEAVES", "GatedRecurrent", "WeightMask", "gated_leaf"]

Masks = Mapping[str, Tensor | None]
Leaf = TypeVar("Leaf", bound=nn.Module)


class WeightMask(StatisticMask):
    """Give the gates of a weight's columns to the layer that owns the weight."""


class GatedRecurrent(nn.Module):
    """A recurrent layer that takes masks of its weights as a third input.

    Parameters and names stay those of the plain one.
    """

    @classmethod
    def from_plain(cls, plain: nn.Module) -> GatedRecurrent:
        """Return the gated twin of a layer, sharing its parameters."""
        return _twin(plain, cls)

    def to_plain(self) -> nn.Module:
        """Return the plain twin, sharing the parameters."""
        return _twin(
            self, next(kind for kind, gated in GATED_LEAVES.items() if gated is type(self))
        )

    def forward(self, input: Tensor, hx: Any = None, masks: Masks | None = None) -> Any:
        """Run the plain layer with masked weights.

        Parameters
        ----------
        input, hx
            As for the plain layer.
        masks : mapping of str to Tensor of shape (columns,), optional
            Gates in [0, 1] of the columns of a weight, by its name; None where all are open.
        """
        plain = self.to_plain()
        for name, mask in (masks or {}).items():
            weight = self._parameters[name]
            if mask is None or weight is None:
                continue
            for other, held in self._parameters.items():
                if held is weight:  # two layers may share it
                    plain._parameters[other] = _masked(weight, mask)  # type: ignore[assignment]
        return plain.forward(input, hx)


def _masked(weight: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return torch.where(mask, weight, 0)
    return weight * mask.to(weight.dtype)


def _twin(module: nn.Module, kind: type[Leaf]) -> Leaf:
    """Return a module of another class with the same attributes; changes to one stay its own."""
    twin = kind.__new__(kind)
    twin.__dict__.update(
        {k: v.copy() if isinstance(v, (list, dict)) else v for k, v in module.__dict__.items()}
    )
    return twin


class GatedLSTM(GatedRecurrent, nn.LSTM):  # type: ignore[misc]
    """`nn.LSTM` with masks."""


class GatedGRU(GatedRecurrent, nn.GRU):  # type: ignore[misc]
    """`nn.GRU` with masks."""


class GatedRNN(GatedRecurrent, nn.RNN):  # type: ignore[misc]
    """`nn.RNN` with masks."""


class GatedLSTMCell(GatedRecurrent, nn.LSTMCell):
    """`nn.LSTMCell` with masks."""


class GatedGRUCell(GatedRecurrent, nn.GRUCell):
    """`nn.GRUCell` with masks."""


class GatedRNNCell(GatedRecurrent, nn.RNNCell):
    """`nn.RNNCell` with masks."""


GATED_LEAVES: dict[type[nn.Module], type[GatedRecurrent]] = {
    nn.LSTM: GatedLSTM,
    nn.GRU: GatedGRU,
    nn.RNN: GatedRNN,
    nn.LSTMCell: GatedLSTMCell,
    nn.GRUCell: GatedGRUCell,
    nn.RNNCell: GatedRNNCell,
}
"""The gated class of every layer that has one."""


def gated_leaf(module: nn.Module) -> type[GatedRecurrent] | None:
    """Return the gated class of a module, or None if it has none (subclasses have none)."""
    return GATED_LEAVES.get(type(module))
