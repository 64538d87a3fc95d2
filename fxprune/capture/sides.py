"""Which sizes of the inputs vary while a model is traced, and the two that stand for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.capture.shaped import Twin

__all__ = ["Free", "has_sides", "sides"]


@dataclass(frozen=True, slots=True)
class Free:
    """Which sizes vary.

    Attributes
    ----------
    sides : bool
        Height and width of images too.
    times : int
        What the other batch size is a multiple of; 1: it is the next one.
    """

    sides: bool = False
    times: int = 1


def has_sides(tensor: Tensor) -> bool:
    """Return whether an input looks like images."""
    return tensor.dim() > 3 and tensor.is_floating_point()


def sides(tensor: Tensor, batched: bool, free: Free) -> Twin:
    """Return meta tensors of two sizes for an input."""
    one = list(tensor.shape)
    if batched and one[0] == 1:
        one[0] = 2  # code may ask for a batch of one
    other = list(one)
    if batched:
        other[0] = one[0] * free.times if free.times > 1 else one[0] + 1
    if free.sides and has_sides(tensor):
        other[2:] = [2 * n for n in one[2:]]
    a, b = (torch.empty(shape, dtype=tensor.dtype, device="meta") for shape in (one, other))
    return a, b
