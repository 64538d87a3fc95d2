"""Constants during the analysis: tensors whose real values are known beside their meta twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["numbers_of_masks", "replaced"]


def replaced(value: Any, known: Mapping[int, Tensor]) -> Any:
    """Return nested arguments with the real values of the tensors whose ``id`` is in `known`."""
    if isinstance(value, Tensor):
        return known.get(id(value), value)
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(v, known) for v in value)
    if isinstance(value, dict):
        return {k: replaced(v, known) for k, v in value.items()}
    return value


def numbers_of_masks(
    args: tuple[Any, ...],
    const: Callable[[Tensor], Tensor | None],
    twin: Callable[[Tensor], Tensor],
) -> tuple[Any, ...]:
    """Write the known masks among the indices of ``x[.., mask, ..]`` as the positions they take.

    How many positions a mask takes depends on its values, which meta tensors do not have.

    Parameters
    ----------
    args : tuple
        Of ``aten::index``: the tensor, and per axis its numbers, a mask or None.
    const : callable
        Returns the real value of a tensor, if it is known.
    twin : callable
        Returns the meta twin of a real tensor.
    """
    indices: list[Tensor | None] = []
    for index in args[1]:
        known = None if index is None or index.dtype != torch.bool else const(index)
        if known is None:
            indices.append(index)
        else:
            indices += [twin(numbers) for numbers in known.nonzero(as_tuple=True)]
    return (args[0], indices, *args[2:])
