"""What one walk over a captured graph saw, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis.axes import TensorIds
from fxprune.analysis.ids import Ids
from fxprune.analysis.op import flat_tensors
from fxprune.analysis.tracker import Contraction, MacsTerm, StatisticSite, WeightSite

__all__ = ["GraphTrace", "NodeIds", "form_of"]

NodeIds = tuple[tuple[tuple[int, ...], TensorIds], ...]


@dataclass(slots=True)
class GraphTrace:
    """What one walk over a graph saw.

    Attributes
    ----------
    values : dict[str, NodeIds]
        By node name: shape and ids of every tensor in its value (several for split), for nodes that
        carry ids.
    sizes : dict[str, tuple[str, int]]
        Nodes whose value is the width of one axis: the tensor's node and the axis.
    whole_sizes : dict[str, tuple[str, tuple[int, ...]]]
        Nodes whose value is a shape or a part of one: the tensor's node and the axes.
    arguments, keywords : dict[str, Any]
        Arguments of nodes that carry ids, integers as they were (tensors replaced by None).
    shapes : dict[str, tuple]
        Shape and dtype of every tensor in a node's value.
    forms : dict[str, Any]
        How they are nested: 0 for a single tensor, else numbers in place, such as (0, (1, 2)).
    plain : dict[str, Any]
        Values of nodes without tensors.
    storages : dict[str, int]
        Which memory a node's (first) tensor lies in.
    writers : list of (str, int)
        Nodes that change a tensor in place, and which memory they write to.
    redirects : list[tuple[str, str]]
        ``(value, writer)``: `writer` changed `value` in place; later readers of `value` see what
        `writer` returned.
    outputs : list of TensorIds
        Ids of the tensors the model returns.
    contractions, weights, statistics, terms
        What the operators recorded, see `fxprune.analysis.tracker`.
    lookups : dict[tuple[str, int], Ids]
        By node and axis of its input: the numbers of the positions it takes.
    """

    values: dict[str, NodeIds] = field(default_factory=dict)
    sizes: dict[str, tuple[str, int]] = field(default_factory=dict)
    whole_sizes: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    keywords: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[tuple[tuple[int, ...], torch.dtype], ...]] = field(default_factory=dict)
    forms: dict[str, Any] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)
    writers: list[tuple[str, int]] = field(default_factory=list)
    redirects: list[tuple[str, str]] = field(default_factory=list)
    outputs: list[TensorIds] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    weights: list[WeightSite] = field(default_factory=list)
    statistics: list[StatisticSite] = field(default_factory=list)
    terms: list[MacsTerm] = field(default_factory=list)
    lookups: dict[tuple[str, int], Ids] = field(default_factory=dict)


def form_of(value: Any, numbers: Iterator[int]) -> Any:
    """Return nested tuples and dicts with a number in place of every tensor, in order."""
    if isinstance(value, Tensor):
        return next(numbers)
    if isinstance(value, dict):
        return {k: form_of(v, numbers) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(form_of(v, numbers) for v in value)
    return tuple(next(numbers) for _ in flat_tensors(value))
