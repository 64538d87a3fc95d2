"""The whole form of a model that was shrunk: what it is compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fxprune.api import gate_again
from fxprune.errors import LoadError
from fxprune.gated import GatedModule
from fxprune.settings import Recipe
from fxprune.shrink import OWN, cuts_of

__all__ = ["whole_form"]


def whole_form(gated: GatedModule, model: nn.Module) -> GatedModule:
    """Return the original network, gated, with the masks and the weights of one that was shrunk.

    Shrinking and making the compact model share their passes, so that a shrunk network which agrees
    with its compact form proves little. The whole form shares none of them: nothing is cut, what
    has been removed is there, with the weights of `model`, and masks close it.

    Parameters
    ----------
    gated : GatedModule
        May have been shrunk, any number of times, and have closed units that are not cut out yet.
    model : nn.Module
        Of the original architecture, with any weights. Never changed.

    Returns
    -------
    GatedModule
        In the mode that `model` is in.

    Raises
    ------
    LoadError
        If `model` is of another architecture.
    FxpruneError
        As for `auto_gate`.

    Examples
    --------
    >>> import torch, fxprune
    >>> from fxprune.whole import whole_form
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> gated = fxprune.auto_gate(net, torch.zeros(1, 4))
    >>> gated.set_keep({gated.groups[0].name: torch.arange(8) < 3})
    >>> _ = gated.shrink_()
    >>> fxprune.verify(whole_form(gated, net), gated.compact(), torch.rand(5, 4)).passed
    True
    """
    recipe = Recipe.parse(gated.settings.recipe(gated.original_keep))
    whole = gate_again(model, recipe)
    if [(g.name, g.size) for g in whole.groups] != [
        (g.name, g.size) for g in gated.original_groups
    ]:
        raise LoadError(
            "This model is not the one that was gated and shrunk.",
            seen=f"{len(whole.groups)} groups for {len(gated.original_groups)}",
            hint="pass the original, before auto_gate, or another of its architecture",
        )
    _spread(gated, whole)
    whole.set_keep(recipe.keep)
    return whole


def _spread(small: GatedModule, whole: GatedModule) -> None:
    """Write the tensors of a shrunk model into the places that they had."""
    left = np.ones(whole.plan.n_units, dtype=bool)
    for at, mask in zip(whole.plan.group_slices().values(), small.remaining.values(), strict=True):
        left[at] = mask.cpu().numpy()
    cuts = cuts_of(whole, whole.plan, left)
    theirs = {
        **dict(small.named_parameters(remove_duplicate=False)),
        **dict(small.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for name, tensor in (*whole.named_parameters(), *whole.named_buffers()):
            if name not in theirs or name.partition(".")[0] in OWN:
                continue
            cut = cuts.get(id(tensor))
            if cut is None:
                tensor.copy_(theirs[name])
            else:
                cut.put(theirs[name], tensor)
