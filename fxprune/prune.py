"""One-shot pruning: gate, score, cut, compact."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from fxprune.analysis.plan import Keep
from fxprune.analysis.policy import Attention
from fxprune.api import Ignore, auto_gate
from fxprune.budget import Selection, solve
from fxprune.gated import GatedModule
from fxprune.importance import Importance, Scores, score_units
from fxprune.inputs import ExampleInputs
from fxprune.notes import notes

__all__ = ["BudgetWarning", "choose", "prune", "select", "set_masks"]

_log = logging.getLogger("fxprune")


class BudgetWarning(UserWarning):
    """The budget could only be met approximately."""


def select(
    gated: GatedModule,
    *,
    macs: float | None = None,
    params: float | None = None,
    importance: Importance = "magnitude",
    round_to: int | None = None,
    seed: int = 0,
) -> Selection:
    """Set the hard masks of a gated model to the best units within a budget.

    Parameters
    ----------
    gated : GatedModule
        Its masks are set; nothing else is changed.
    macs, params : float in (0, 1]
        Share of the *whole* dense model to keep; give one of the two. Met within 1 %.
    importance : str, Tensor of shape (n_units,), or callable
        ``"magnitude"``, ``"magnitude_l1"``, ``"random"``, scores, or a function from the gated
        model to scores.
    round_to : int, optional
        What `auto_gate` was given by default. Keep widths multiples of this: onnxruntime on CPU,
        for one, computes in blocks of 16 channels.
    seed : int
        For random importance.

    Returns
    -------
    Selection
        What was asked and what was reached.

    Raises
    ------
    BudgetError
        If the budget is out of range or cannot be reached.
    ConfigError
        If another argument is wrong.

    Warns
    -----
    BudgetWarning
        If nothing within 1 % of the budget was found, as may happen with a coarse `round_to`.
    """
    scores = score_units(gated, importance, seed)
    if round_to is None:
        round_to = gated.settings.round_to
    chosen = choose(gated, scores, macs=macs, params=params, round_to=round_to)
    set_masks(gated, chosen.keep)
    if not chosen.met:
        warnings.warn(str(chosen), BudgetWarning, stacklevel=2)
    return chosen


def choose(
    gated: GatedModule,
    scores: Scores,
    *,
    macs: float | None = None,
    params: float | None = None,
    round_to: int = 1,
    stay: Keep | None = None,
    leave: Keep | None = None,
) -> Selection:
    """Choose the units of a gated model to keep, see `fxprune.budget.solve`.

    Shares are of the whole original model, even where it has been shrunk since. No mask is set.
    """
    return solve(
        gated.plan,
        gated.cost_of,
        scores,
        macs=macs,
        params=params,
        round_to=round_to,
        dense=gated.dense_cost,
        stay=stay,
        leave=leave,
    )


def set_masks(gated: GatedModule, keep: Keep) -> None:
    """Set all hard masks from a keep-vector, bool array of shape (n_units,)."""
    slices = gated.plan.group_slices()
    gated.set_keep({name: torch.from_numpy(keep[at]) for name, at in slices.items()})


def prune(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    importance: Importance = "magnitude",
    round_to: int = 1,
    ignore: Sequence[Ignore] | Ignore = (),
    attention: Attention = "both",
    branches: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Prune a model once, without training: gate, score, cut, compact.

    Parameters
    ----------
    model : nn.Module or torch.fx.GraphModule
        Never changed.
    example_inputs : Tensor, tuple of Tensor or dict of keyword arguments, optional
        Guessed when left out.
    macs, params, importance, round_to, seed
        See `select`.
    ignore, attention, branches
        See `fxprune.auto_gate`.

    Returns
    -------
    nn.Module
        The compact model, of plain torch modules. Its ``meta["fxprune"]`` is a dict of what was
        asked and what was reached: ``resource``, ``target``, ``reached``, ``met``.

    Raises
    ------
    FxpruneError
        As `fxprune.auto_gate` and `select` do.

    Examples
    --------
    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 4, 1)
    ... )
    >>> compact = fxprune.prune(net, torch.zeros(1, 3, 8, 8), macs=0.5)
    >>> compact.get_submodule("0").out_channels
    32
    """
    gated = auto_gate(model, example_inputs, ignore=ignore, attention=attention, branches=branches)
    chosen = select(
        gated, macs=macs, params=params, importance=importance, round_to=round_to, seed=seed
    )
    compact = gated.compact()
    notes(compact)["fxprune"] = chosen.summary()
    _log.info("%s", chosen)
    return compact
