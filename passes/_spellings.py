"""How graphs spell the operators that passes look for: as methods, functions and ATen overloads."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

__all__ = [
    "COPIES",
    "PERMUTES",
    "RESHAPES",
    "SELECTS",
    "SPLITS",
    "SWAPS",
    "UNBINDS",
    "UNFLATTENS",
    "in_a_list",
    "listed",
    "permuted",
]

_ATEN = torch.ops.aten

RESHAPES = (
    "view",
    "reshape",
    torch.reshape,
    _ATEN.view.default,
    _ATEN.reshape.default,
    _ATEN._unsafe_view.default,
)
UNFLATTENS = ("unflatten", torch.unflatten, _ATEN.unflatten.int)
COPIES = ("contiguous", "clone", torch.clone, _ATEN.contiguous.default, _ATEN.clone.default)
PERMUTES = ("permute", torch.permute, _ATEN.permute.default)
SWAPS = ("transpose", "swapaxes", torch.transpose, torch.swapaxes, _ATEN.transpose.int)
UNBINDS = ("unbind", torch.unbind, _ATEN.unbind.int)
SELECTS = ("select", torch.select, _ATEN.select.int)
SPLITS = (
    "chunk",
    "split",
    "split_with_sizes",
    torch.chunk,
    torch.split,
    torch.split_with_sizes,
    _ATEN.chunk.default,
    _ATEN.split.Tensor,
    _ATEN.split_with_sizes.default,
)


def listed(node: Node) -> list[Any]:
    """Return what a node is given besides its tensor, whether as a list or one by one."""
    return in_a_list([*node.args[1:], *(v for k, v in node.kwargs.items() if k != "input")])


def in_a_list(given: list[Any]) -> list[Any]:
    """Return numbers that were given one by one, or as one list."""
    return list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else given


def permuted(node: Node, order: list[int]) -> list[int] | None:
    """Return axes in the order a permutation leaves them; None if its numbers are not known."""
    dims = listed(node)
    if node.target not in (*PERMUTES, *SWAPS) or not all(isinstance(d, int) for d in dims):
        return None
    if node.target in PERMUTES:
        return [order[d] for d in dims]
    result = list(order)
    result[dims[0]], result[dims[1]] = order[dims[1]], order[dims[0]]
    return result
