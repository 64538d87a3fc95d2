"""What fxprune writes down on a compact model: how it was made."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxprune.errors import InternalError

__all__ = ["RECIPE", "notes", "read_note"]

RECIPE = "fxprune_recipe"
"""Key of the JSON recipe that `fxprune.save` writes."""


def notes(model: nn.Module) -> dict[str, Any]:
    """Return the dict of notes that travels with a compact model.

    Parameters
    ----------
    model : nn.Module

    Returns
    -------
    dict
        Its ``meta``, which every `torch.fx.GraphModule` has and which any other model is given; a
        model that keeps something else under that name has it as ``fxprune_meta``.
    """
    for name in ("meta", "fxprune_meta"):
        kept = model.__dict__.setdefault(name, {})
        if isinstance(kept, dict):
            return kept
    raise InternalError("a model has no room for notes", seen=type(kept).__name__)


def read_note(model: nn.Module, key: str) -> Any:
    """Return one note of a model, or None, without giving it room for notes.

    Parameters
    ----------
    model : nn.Module
    key : str
    """
    for name in ("meta", "fxprune_meta"):
        kept = model.__dict__.get(name)
        if isinstance(kept, dict) and key in kept:
            return kept[key]
    return None
