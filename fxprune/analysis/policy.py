"""Which parts of attention are pruned: whole heads, positions inside heads, both, or nothing.

A product of two activations, batched over an axis that carries ids, is attention, and that axis is
its heads. The reshape that split the heads off made each position of a projection the composition
of a head and of a place inside the head (see `fxprune.analysis.axes`), so the places are found as
the other factor. What the policy does not prune is frozen; the rectangle stays one either way.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from fxprune.analysis.ids import Ids, IdSpace
from fxprune.errors import ConfigError

__all__ = ["Attention", "apply_policy", "check_attention", "heads_and_places", "kinds_of"]

Attention = Literal["head", "head_dim", "both", "off"]
"""What of attention is prunable: whole heads, positions inside all heads of a layer, or both."""

_PRUNED = {"head": ("head",), "head_dim": ("head_dim",), "both": ("head", "head_dim"), "off": ()}
_WORDS = {"head": "whole heads", "head_dim": "positions inside heads"}


def check_attention(value: object) -> None:
    """Raise a ConfigError unless `value` is a policy."""
    if value not in get_args(Attention):
        raise ConfigError(
            "The 'attention' parameter must be 'head', 'head_dim', 'both' or 'off'. "
            f"Got {value!r} instead."
        )


def heads_and_places(space: IdSpace) -> tuple[Ids, Ids]:
    """Return the root classes of heads, and of the positions inside heads."""
    pairs = np.stack(space.factor_pairs())
    roots = np.unique(space.find(space.heads()))
    known = np.isin(pairs, roots)
    other = pairs[::-1][known & ~known[::-1]]
    return roots, np.setdiff1d(space.find(space.atoms(other)), roots)


def apply_policy(space: IdSpace, policy: Attention) -> None:
    """Freeze what a policy does not prune."""
    for kind, ids in zip(_WORDS, heads_and_places(space), strict=True):
        if kind not in _PRUNED[policy]:
            space.freeze(ids, f'attention="{policy}" does not prune {_WORDS[kind]}')


def kinds_of(space: IdSpace, atoms: Ids) -> list[Literal["channel", "head", "head_dim"]]:
    """Return what each of some root classes is."""
    heads, places = (np.isin(atoms, found) for found in heads_and_places(space))
    return [
        "head" if h else "head_dim" if p else "channel" for h, p in zip(heads, places, strict=True)
    ]
