"""A Bernoulli variable for every structure: its parameter theta, and what is drawn with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Block", "Thetas"]

_TINY = 1e-30
_TENSORS = "value", "removed", "fixed", "_given"
_SETTLED = 0.05  # a theta nearer than this to 0 or 1 has settled


class Block:
    """What the thetas of one group must respect.

    Parameters
    ----------
    at : slice
        The group's units.
    step : int
        Units leave in multiples of this.
    least : int
        So many stay: one block, or 0 for a branch.
    """

    def __init__(self, at: slice, step: int, least: int) -> None:
        self.at, self.step, self.least = at, step, least


class Thetas:
    """The parameters of all structures.

    Parameters
    ----------
    blocks : sequence of Block
    fixed : bool Tensor, shape (n_units,)
        Structures that stay whatever happens; they are not drawn.

    Attributes
    ----------
    value : float64 Tensor, shape (n_units,)
        In [0, 1]; 1 at first.
    removed : bool Tensor, shape (n_units,)
        Structures that are gone for good: theta reached 0.
    fixed : bool Tensor, shape (n_units,)
    """

    def __init__(self, blocks: Sequence[Block], fixed: Tensor) -> None:
        self._blocks = list(blocks)
        self.value = torch.ones(len(fixed), dtype=torch.float64)
        self.removed = torch.zeros_like(fixed)
        self.fixed = fixed.clone()
        for block in blocks:
            if len(fixed[block.at]) < block.least + block.step:
                self.fixed[block.at] = True
        self._given = ~self.fixed
        self._cut = 0  # how many of those are not among these thetas any more

    @property
    def free(self) -> Tensor:
        """Which thetas still move."""
        return ~(self.removed | self.fixed)

    @property
    def settled(self) -> float:
        """Share of the thetas that may move, or did, which are within 0.05 of 0 or 1."""
        own = self.value[self._given]
        between = int(((own > _SETTLED) & (own < 1 - _SETTLED)).sum())
        return 1.0 - between / max(1, len(own) + self._cut)

    def draw(self, uniform: Tensor, explored: float = 0.0) -> Tensor:
        """Return one sample of all gates, float64, shape (n_units,).

        Gates are 0, 1, or anything between, equally likely, where an open one explores: what a
        structure is worth does not show while its gate is open (`fxprune.controllers.slopes`), and
        where theta is 1 it always is. A group that may not be closed keeps the gate with the
        highest theta open.

        Parameters
        ----------
        uniform : float64 Tensor, shape (n_units,)
            Random numbers in [0, 1).
        explored : float
            Share of the open gates that explore.
        """
        chance = torch.where(self.fixed, 1.0, torch.where(self.removed, 0.0, self.value))
        opened = uniform < chance
        # The upper end of what opens a gate is for exploring, and says how far it opens.
        place = (uniform - (1 - explored) * chance) / (explored * chance).clamp_min(_TINY)
        explores = opened & self.free & (place >= 0)
        sample = torch.where(explores, place, opened.double())
        for block in self._blocks:
            if block.least and not bool(sample[block.at].any()):
                sample[block.at.start + int(self.value[block.at].argmax())] = 1.0
        return sample

    def move(self, step: Tensor, worth: Tensor, remove: bool = True) -> None:
        """Add a step and project to [0, 1]; structures whose theta is 0 then are removed.

        Parameters
        ----------
        step : float64 Tensor, shape (n_units,)
        worth : Tensor, shape (n_units,)
            Where fewer can be removed than have a theta of 0, the least worth go.
        remove : bool
            Whether any are; else they may come back.
        """
        moved = (self.value + torch.where(self.free, step, 0.0)).clamp(0, 1)
        self.value = torch.where(self.free, moved, self.value)
        for block in self._blocks if remove else ():
            self._remove(block, worth)

    def _remove(self, block: Block, worth: Tensor) -> None:
        """Remove whole blocks of what is at 0; the last block stays, at theta 1."""
        value, removed, fixed = (x[block.at] for x in (self.value, self.removed, self.fixed))
        candidates = ((value <= 0) & ~fixed).nonzero().flatten()
        most = len(value) - block.least
        count = min(len(candidates), most) // block.step * block.step
        if count <= int(removed.sum()):
            return
        rank = torch.where(removed, -torch.inf, worth[block.at])[candidates]
        removed[candidates[rank.argsort(stable=True)[:count]]] = True  # a view: written in place
        if int(removed.sum()) + block.step > most:
            left = ~removed
            fixed |= left
            value[left] = 1.0

    def take(self, kept: Tensor, blocks: Sequence[Block]) -> None:
        """Go on with some of the units, which have been removed or have settled; in `blocks`."""
        self._blocks = list(blocks)
        before = int(self._given.sum())
        for name in _TENSORS:
            setattr(self, name, getattr(self, name)[kept])
        self._cut += before - int(self._given.sum())

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes."""
        tensors = {name: getattr(self, name).clone() for name in _TENSORS}
        return {**tensors, "cut": self._cut}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        for name in _TENSORS:
            setattr(self, name, torch.zeros_like(getattr(self, name)).copy_(state[name]))
        self._cut = int(state["cut"])
