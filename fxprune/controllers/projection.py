"""Driving closed units to zero after each optimizer step.

Both work on a unit's producer side ``[W]_g`` (`fxprune.controllers.producers`) and on closed units
only, with the learning rate ``eta`` of the optimizer and the strength ``lambda_g`` of the group.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fxprune.controllers.producers import ClosedRows, Producers

__all__ = ["PROJECTIONS", "HalfSpace", "Projection", "Proximal"]

_TINY = torch.finfo(torch.float32).tiny


class Projection(ABC):
    """What is done to closed units after an optimizer step.

    Parameters
    ----------
    producers : Producers
    """

    def __init__(self, producers: Producers) -> None:
        self._producers = producers

    @abstractmethod
    def begin(self, rows: list[ClosedRows]) -> None:
        """Take note that these are the closed rows from now on."""

    def state(self) -> list[Tensor]:
        """Return what is remembered, for a checkpoint."""
        return []

    def load_state(self, state: list[Tensor]) -> None:
        """Restore what `state` returned."""
        del state

    @abstractmethod
    def apply(self, rows: list[ClosedRows], rates: list[float], strength: Tensor) -> None:
        """Move the closed units towards zero.

        Parameters
        ----------
        rows : list of ClosedRows
        rates : list of float
            The learning rate of each one's parameter.
        strength : Tensor, shape (n_units,)
            ``lambda_g`` of each unit's group.
        """


class Proximal(Projection):
    """Group soft thresholding: ``[W]_g <- max(0, 1 - eta * lambda_g / ||[W]_g||) * [W]_g``.

    The proximal operator of ``eta * lambda_g * ||[W]_g||``.

    References
    ----------
    .. [1] Wu et al., "Auto-Train-Once", CVPR 2024, section 3.3.
    """

    def begin(self, rows: list[ClosedRows]) -> None:
        """Nothing needs to be remembered."""

    def apply(self, rows: list[ClosedRows], rates: list[float], strength: Tensor) -> None:
        """Shrink every closed unit's norm by ``eta * lambda_g``, down to 0."""
        values = [one.take() for one in rows]
        norms = self._producers.norms_of(rows, values).clamp_min(_TINY)
        for one, value, rate in zip(rows, values, rates, strict=True):
            # The rate first: 0 of it must move nothing, also where the norm is 0.
            factors = (1 - rate * strength[one.units] / norms[one.units]).clamp_min(0)
            one.put(value * one.along(factors))


class HalfSpace(Projection):
    """Half-space projection: a unit whose step turns it around becomes 0.

    With ``x`` the unit before the optimizer step and ``y`` the unit after it, moved a further ``eta
    * lambda_g`` towards zero: ``[W]_g <- y``, or 0 when ``<y, x> < epsilon * ||x||^2``.

    References
    ----------
    .. [1] Chen et al., "Only Train Once", NeurIPS 2021, section 3.2 (half-space step).
    """

    epsilon = 0.0

    def __init__(self, producers: Producers) -> None:
        super().__init__(producers)
        self._before: list[Tensor] = []

    def begin(self, rows: list[ClosedRows]) -> None:
        """Remember the closed units as they are."""
        self._before = [one.take() for one in rows]

    def state(self) -> list[Tensor]:
        """Return the closed units as they were after the last step."""
        return list(self._before)

    def load_state(self, state: list[Tensor]) -> None:
        """Restore what `state` returned."""
        self._before = [kept.to(now.device) for kept, now in zip(state, self._before, strict=True)]

    def apply(self, rows: list[ClosedRows], rates: list[float], strength: Tensor) -> None:
        """Take the half-space step and remember the result."""
        norms = self._producers.norms_of(rows, self._before)
        lengths = norms.clamp_min(_TINY)
        moved, along = [], torch.zeros_like(norms)
        for one, before, rate in zip(rows, self._before, rates, strict=True):
            pull = rate * strength[one.units] / lengths[one.units]
            moved.append(one.take() - one.along(pull) * before)
            along.index_add_(0, one.units, one.sum_others((moved[-1] * before).float()))
        stays = along >= self.epsilon * norms.square()
        stays &= norms > 0
        for one, value in zip(rows, moved, strict=True):
            one.put(torch.where(one.along(stays[one.units].float()) > 0, value, 0))
        self.begin(rows)


PROJECTIONS: dict[str, type[Projection]] = {"proximal": Proximal, "half-space": HalfSpace}
