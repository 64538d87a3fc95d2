"""Save a compact model as data only: its state_dict and a JSON recipe.

No code is pickled; loading uses ``weights_only=True``.
"""

from __future__ import annotations

import os
import pickle
from typing import Any
from zipfile import BadZipFile

import torch
from torch import nn

from fxprune._files import replacing
from fxprune.api import gate_again
from fxprune.errors import ConfigError, FxpruneError, LoadError
from fxprune.notes import RECIPE, notes
from fxprune.settings import Recipe

__all__ = ["load", "save"]


def save(compact: nn.Module, path: str | os.PathLike[str]) -> None:
    """Save a compact model.

    Parameters
    ----------
    compact : nn.Module
        Made by ``gated.compact()`` or `fxprune.prune`; it may have been trained since.
    path : path
        Written beside, then renamed: a failure leaves an older file untouched.

    Raises
    ------
    ConfigError
        If `compact` carries no recipe, or `path` cannot be written.
    """
    recipe = notes(compact).get(RECIPE) if isinstance(compact, nn.Module) else None
    if not isinstance(recipe, str):
        raise ConfigError(
            "Only a compact model that fxprune made can be saved.",
            seen=f"a {type(compact).__name__} without a recipe",
            hint="save what gated.compact() or fxprune.prune() returned",
        )
    with replacing(path) as temporary:
        torch.save({"fxprune": recipe, "state_dict": compact.state_dict()}, temporary)


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Load a compact model.

    Parameters
    ----------
    path : path
        A file written by `save`.
    model : nn.Module
        An instance of the original, unpruned architecture, with any weights. Never changed.

    Returns
    -------
    nn.Module
        The compact model, bit-identical to the one saved.

    Raises
    ------
    LoadError
        If the file is damaged or foreign, or `model` is of another architecture.
    """
    recipe, state = _read(path)
    try:
        gated = gate_again(model, recipe)
    except FxpruneError as error:
        raise LoadError(f"{path} does not fit the {type(model).__name__} given: {error}") from error
    sizes = {group.name: group.size for group in gated.groups}
    saved = {name: len(mask) for name, mask in recipe.keep.items()}
    if sizes != saved:
        differing = sorted(set(sizes.items()) ^ set(saved.items()))[0][0]
        raise LoadError(
            f"{path} was saved from another architecture than the {type(model).__name__} given.",
            seen=f"group {differing!r} has {sizes.get(differing)} units here and "
            f"{saved.get(differing)} in the file",
            hint="build the model exactly as it was before pruning",
        )
    try:
        gated.set_keep(recipe.keep)
        compact = gated.compact()
        _check_dtypes(path, compact, state)
        compact.load_state_dict(state)
    except (FxpruneError, RuntimeError) as error:
        raise LoadError(f"{path} does not fit the {type(model).__name__} given: {error}") from error
    return compact


def _check_dtypes(path: str | os.PathLike[str], compact: nn.Module, state: dict[str, Any]) -> None:
    """Refuse a file of another precision: its values would be rounded in silence."""
    for name, tensor in compact.state_dict().items():
        if name in state and state[name].dtype != tensor.dtype:
            raise LoadError(
                f"{path} holds {state[name].dtype}, the model given is {tensor.dtype}.",
                where=name,
                hint="convert the model first, for example with model.double()",
            )


def _read(path: str | os.PathLike[str]) -> tuple[Recipe, dict[str, Any]]:
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
        return Recipe.parse(data["fxprune"]), data["state_dict"]
    except FileNotFoundError as error:
        raise LoadError(
            f"There is no file {path}.", hint="give the path that fxprune.save wrote"
        ) from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, BadZipFile) as error:
        raise LoadError(f"{path} is damaged or not a file that torch can read: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LoadError(
            f"{path} was not written by fxprune.save.", seen=f"{type(error).__name__}: {error}"
        ) from error
