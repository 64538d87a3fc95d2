"""From thetas to the masks that a run ends with."""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.plan import Keep
from fxprune.budget import Selection, block_size
from fxprune.controllers.bernoulli import Block, Thetas
from fxprune.gated import GatedModule
from fxprune.importance import Scores
from fxprune.prune import BudgetWarning, choose, set_masks

__all__ = ["blocks_of", "resolve"]


def blocks_of(gated: GatedModule, round_to: int) -> list[Block]:
    """Return, group by group, how many units leave at once and how many stay."""
    found = []
    for group, at in zip(gated.groups, gated.plan.group_slices().values(), strict=True):
        step = block_size(gated.plan, group, round_to)
        found.append(Block(at, step, 0 if group.kind == "branch" else step))
    return found


def resolve(
    gated: GatedModule,
    thetas: Thetas,
    worth: Tensor,
    resource: Literal["macs", "params"],
    target: float | None,
    round_to: int,
) -> Selection:
    """Set hard masks: those that meet the budget, or those nearest to the thetas.

    Parameters
    ----------
    gated : GatedModule
    thetas : Thetas
    worth : float64 Tensor, shape (n_units,)
        Decides between equal thetas.
    resource, target
        The budget; without a target there is none.
    round_to : int
        Widths stay multiples of this.

    Warns
    -----
    BudgetWarning
        If nothing within 1 % of the budget was found.
    """
    # In (0, 1): between two thetas that differ, theta alone decides.
    usual = worth[~thetas.removed].abs().mean() + torch.finfo(worth.dtype).tiny
    tie = 0.5 + 0.5 * worth / (worth.abs() + usual)
    scores = (thetas.value + 1e-3 * tie).numpy()
    if target is None:
        keep = _nearest(gated, thetas, scores, round_to)
        cost, dense = gated.cost_of(keep), gated.dense_cost
        reached = getattr(cost, resource) / getattr(dense, resource)
        chosen = Selection.of(resource, None, reached, keep, cost)
    else:
        macs, params = (target if resource == name else None for name in ("macs", "params"))
        chosen = choose(
            gated,
            scores,
            macs=macs,
            params=params,
            round_to=round_to,
            stay=thetas.fixed.numpy(),
            leave=thetas.removed.numpy(),
        )
        if not chosen.met:
            warnings.warn(str(chosen), BudgetWarning, stacklevel=5)
    set_masks(gated, chosen.keep)
    return chosen


def _nearest(gated: GatedModule, thetas: Thetas, scores: Scores, round_to: int) -> Keep:
    """Return the units whose theta is above one half, in whole blocks, the last one kept."""
    keep = np.zeros(gated.plan.n_units, dtype=bool)
    for block in blocks_of(gated, round_to):
        value = thetas.value[block.at]
        width = len(value)
        leaving = round(float((value < 0.5).sum()) / block.step) * block.step
        most = (width - block.least) // block.step * block.step
        order = block.at.start + np.argsort(-scores[block.at], kind="stable")
        keep[order[: width - max(0, min(leaving, most))]] = True
    return keep
