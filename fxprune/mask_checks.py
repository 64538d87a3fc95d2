"""What is asked of hard masks that a caller gives."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis.plan import Plan
from fxprune.errors import GateError

__all__ = ["check_masks"]


def check_masks(plan: Plan, masks: Mapping[str, Any]) -> None:
    """Raise a GateError unless each mask is one of a group of a plan.

    Raises
    ------
    GateError
        If a name is no group, a mask is not bool, has the wrong length, or keeps nothing of a group
        that is no branch.
    """
    slices = plan.group_slices()
    branches = {group.name for group in plan.groups if group.kind == "branch"}
    for name, mask in masks.items():
        _check_mask(name, mask, slices, may_close=name in branches)


def _check_mask(name: str, mask: Any, slices: Mapping[str, slice], may_close: bool) -> None:
    if name not in slices:
        close = difflib.get_close_matches(str(name), slices, n=3) or list(slices)[:3]
        raise GateError(
            f"There is no group named {name!r}.",
            seen=f"groups such as {', '.join(close)}"
            if close
            else "a model with no prunable group",
            hint="use the names in gated.groups",
        )
    size = slices[name].stop - slices[name].start
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        seen = f"{mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise GateError(
            f"The mask of group {name!r} must be a bool tensor.",
            seen=seen,
            hint="for scores, pass scores > 0",
        )
    if tuple(mask.shape) != (size,):
        raise GateError(
            f"The mask of group {name!r} must have shape ({size},).", seen=str(tuple(mask.shape))
        )
    if not mask.any() and not may_close:
        raise GateError(
            f"The mask of group {name!r} keeps nothing.",
            seen=f"{size} times False",
            hint="keep at least one unit: a group without channels has no output",
        )
