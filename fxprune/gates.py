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
from torch import Tensor, nn

__all__ = ["Gate", "GateVector", "StatisticMask"]


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
    sampled : Tensor or None, shape (n_units,)
        When set, used instead of `value` in training mode, step after step until it is replaced;
        gradients reach it. No copy, pickle or state_dict has it.
    """

    value: Tensor

    def __init__(self, n_units: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(n_units + 1))
        self.soft: Tensor | None = None
        self.sampled: Tensor | None = None
        self.is_open = True

    def forward(self) -> Tensor | None:
        """Return the vector, shape (n_units + 1,), or None while all gates are open.

        Hard gates come as bool: a closed gate then gives 0 even where the value is inf or NaN.
        """
        gates = self.sampled if self.soft is None and self.training else self.soft
        if gates is not None:
            return torch.cat([gates, gates.new_ones(1)])
        return None if self.is_open else self.value > 0.5

    def set_hard(self, keep: Tensor) -> None:
        """Set hard gates from a bool tensor of shape (n_units,)."""
        with torch.no_grad():
            self.value[:-1].copy_(keep)
        self.is_open = bool(keep.all())

    def __getstate__(self) -> dict[str, Any]:
        # Both belong to one training run.
        return {**self.__dict__, "soft": None, "sampled": None}

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
        return f"width={', '.join(str(n) for n in self.index.shape[1:] if n != 1)}"


class Gate(_Lookup):
    """Multiply a tensor by the gates of one of its axes."""

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        """Return ``x * vector[index]``, or `x` itself while all gates are open."""
        if vector is None:
            return x
        gates = self.values(vector)
        return torch.where(gates, x, 0) if gates.dtype is torch.bool else x * gates.to(x.dtype)


class StatisticMask(_Lookup):
    """Give the gates of the axes that a statistic runs over to its gated twin.

    Parameters
    ----------
    index : int Tensor
        As for `Gate`; over several axes it holds the units of all of them.
    plain : str
        What the operator was before it got its gated twin, as `spelling_of` names it.
    """

    def __init__(self, index: Tensor, plain: str = "") -> None:
        super().__init__(index)
        self.plain = plain

    def forward(self, vector: Tensor | None) -> Tensor | None:
        """Return the gates, shape (width, 1, ..), or None while all are open."""
        return None if vector is None else self.values(vector)
