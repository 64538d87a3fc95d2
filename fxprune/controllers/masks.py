"""From the controller's noise-free logits to the units it keeps."""

from __future__ import annotations

from fxprune.analysis.plan import Keep
from fxprune.controllers.relaxation import OPEN_BIAS
from fxprune.gated import GatedModule
from fxprune.importance import Scores
from fxprune.prune import choose

__all__ = ["best_units", "open_units"]


def open_units(gated: GatedModule, logits: Scores) -> Keep:
    """Return the units whose noise-free gates are open; a group of channels keeps its best one.

    Parameters
    ----------
    gated : GatedModule
    logits : float array, shape (n_units,)
        Without the opening bias.

    Returns
    -------
    bool array, shape (n_units,)
    """
    keep: Keep = logits + OPEN_BIAS > 0
    for group, at in zip(gated.groups, gated.plan.group_slices().values(), strict=True):
        keep[at.start + int(logits[at].argmax())] |= group.kind != "branch"
    return keep


def best_units(
    gated: GatedModule, logits: Scores, resource: str, share: float, round_to: int
) -> Keep:
    """Return the units with the highest logits that a budget leaves room for, bool (n_units,)."""
    macs, params = (share if resource == name else None for name in ("macs", "params"))
    return choose(gated, logits, macs=macs, params=params, round_to=round_to).keep
