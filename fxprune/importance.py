"""One-shot importance: a score for every unit, higher is more worth keeping.

Scores must be comparable across groups, because one ranking runs over all of them. So each
parameter axis is scored on its own and divided by its mean, and a unit's score is the mean over its
axes: 1 is an average channel of any layer. A branch is scored by the rows of the weights that go
with it, and 1 is an average branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.analysis.plan import ChannelGroup
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule

__all__ = ["IMPORTANCES", "Importance", "Scores", "magnitude", "random", "score_units"]

Scores = npt.NDArray[np.float64]
Importance = str | Tensor | Callable[[GatedModule], Tensor]


def magnitude(gated: GatedModule, p: int = 2) -> Scores:
    """Score units by the L`p` norm of the weights they own.

    Producing rows and consuming columns count alike. A branch gets the mean of its weights' norms
    per row, divided by what branches have on average.

    Parameters
    ----------
    gated : GatedModule
    p : int
        1 or 2.

    Returns
    -------
    float array, shape (n_units,)

    References
    ----------
    .. [1] Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1 (norms of
    filters).
    .. [2] Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.3 (norms
    over coupled parameters).
    """
    plan = gated.plan
    parameters = dict(gated.named_parameters(remove_duplicate=False))
    total = np.zeros(plan.n_units + 1)
    axes = np.zeros(plan.n_units + 1)
    for (name, dim), ids in plan.axes.items():
        weight = parameters.get(name)
        if weight is None or weight.dim() < 2:
            continue
        rest = [d for d in range(weight.dim()) if d != dim]
        per_position = weight.detach().double().abs().pow(p).sum(rest).cpu().numpy()
        for column in plan.units[ids].T:
            here = np.bincount(column, weights=per_position, minlength=plan.n_units + 1)
            present = np.bincount(column, minlength=plan.n_units + 1) > 0
            present[-1] = False
            if present.any():
                norms = here[present] ** (1 / p)
                total[present] += norms / max(float(norms.mean()), np.finfo(float).tiny)
                axes[present] += 1
    scores: Scores = total[:-1] / np.maximum(axes[:-1], 1)
    branches = [group for group in plan.groups if group.kind == "branch"]
    norms_of = [_norm_per_row(group, parameters, p) for group in branches]
    for group, norm in zip(branches, norms_of, strict=True):
        mean = sum(norms_of) / len(norms_of)
        scores[plan.group_slices()[group.name]] = norm / max(mean, np.finfo(float).tiny)
    return scores


def _norm_per_row(group: ChannelGroup, parameters: Mapping[str, Tensor], p: int) -> float:
    """Return the norm that a row of a branch's weights has, on average over the weights."""
    weights = [parameters[m.fqn].detach() for m in group.members if m.fqn in parameters]
    large = [weight for weight in weights if weight.dim() > 1] or weights
    norms = [float((w.double().abs().pow(p).sum() / max(1, len(w))) ** (1 / p)) for w in large]
    return sum(norms) / max(1, len(norms))


def random(gated: GatedModule, seed: int = 0) -> Scores:
    """Score units at random: the baseline every other importance must beat."""
    return np.random.default_rng(seed).random(gated.plan.n_units)


IMPORTANCES: dict[str, Callable[[GatedModule, int], Scores]] = {
    "magnitude": lambda gated, seed: magnitude(gated),
    "magnitude_l1": lambda gated, seed: magnitude(gated, 1),
    "random": random,
}


def score_units(gated: GatedModule, importance: Importance, seed: int = 0) -> Scores:
    """Return the scores an importance gives.

    Parameters
    ----------
    gated : GatedModule
    importance : str, Tensor of shape (n_units,), or callable returning one
    seed : int
        For random importance.

    Raises
    ------
    ConfigError
        If the name is unknown, or the scores have the wrong shape or are not finite.
    """
    if isinstance(importance, str):
        if importance not in IMPORTANCES:
            raise ConfigError(
                f"The 'importance' parameter must be one of {sorted(IMPORTANCES)}, a tensor or "
                f"a callable. Got {importance!r} instead."
            )
        return IMPORTANCES[importance](gated, seed)
    given = (
        importance(gated)
        if callable(importance) and not isinstance(importance, Tensor)
        else importance
    )
    if not isinstance(given, Tensor) or tuple(given.shape) != (gated.plan.n_units,):
        seen = str(tuple(given.shape)) if isinstance(given, Tensor) else type(given).__name__
        raise ConfigError(
            f"Importance scores must be a tensor of shape ({gated.plan.n_units},), one score "
            f"per unit.",
            seen=seen,
        )
    if not bool(torch.isfinite(given).all()):
        raise ConfigError("Importance scores must be finite.", seen="NaN or infinite scores")
    scores: Scores = given.detach().double().cpu().numpy()
    return scores
