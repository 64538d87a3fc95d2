"""Sizes written into the nodes of norms: a layer norm's shape, a group norm's number of groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from fxprune.passes._pruned_view import PrunedView, get_arg, set_arg, unpack

__all__ = ["NORM_RULES"]

_ATEN = torch.ops.aten


def _layer_norm(node: Node, view: PrunedView) -> None:
    values = view.values(node)
    if len(values) != 1:
        return
    shape, ids = values[0]
    given = get_arg(node, 1, "normalized_shape")
    count = len(view.old(node, 1, "normalized_shape"))
    if not any(view.cut(axis) for axis in ids[-count:]):
        return
    entries = unpack(node, given, count) if isinstance(given, Node) else list(given)
    for place in range(-count, 0):
        if view.cut(ids[place]):
            entries[place] = view.count(ids[place], shape[place])
    set_arg(node, 1, "normalized_shape", tuple(entries))


def _group_norm(node: Node, view: PrunedView) -> None:
    """Leave as many groups as have a channel that is kept."""
    source = view.values(get_arg(node, 0, "input"))
    axis = source[0][1][1] if len(source) == 1 else None
    if axis is not None and view.cut(axis):
        kept = view.plan.kept(axis, view.keep)
        groups = kept.reshape(view.old(node, 1, "num_groups"), -1)
        set_arg(node, 1, "num_groups", int(groups.any(axis=1).sum()))


_SPELLINGS: dict[Callable[[Node, PrunedView], None], tuple[Any, ...]] = {
    _layer_norm: (
        *(F.layer_norm, torch.layer_norm, _ATEN.layer_norm.default),
        *(F.rms_norm, torch.rms_norm, _ATEN.rms_norm.default),
    ),
    _group_norm: (F.group_norm, torch.group_norm, _ATEN.group_norm.default),
}

NORM_RULES = {
    ("call_function", target): rule for rule, targets in _SPELLINGS.items() for target in targets
}
"""By ``(op, target)``: how to rewrite the sizes of a node."""
