"""What the command line calls MODEL and SHAPE: models by name, example inputs by their sizes."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torchvision import models as torchvision_models

from fxprune.errors import ConfigError, LoadError
from fxprune.runtime import first_lines

__all__ = ["build_model", "parse_inputs"]

_FORMS = "a torchvision name, timm:NAME, or package.module:factory"


def build_model(name: str, weights: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Build the model that a name on the command line stands for.

    Parameters
    ----------
    name : str
        A torchvision name, ``timm:NAME``, or ``package.module:factory``, where the module is found
        in the current directory too and the factory is called without arguments.
    weights : str, optional
        A file with a state_dict, or else a name of weights that torchvision knows; ``DEFAULT`` for
        timm's. Without it the weights are what the builder makes, mostly random.
    num_classes : int, optional
        Width of the output, where the library builds the model; a factory decides for itself.

    Returns
    -------
    nn.Module
        In eval mode.

    Raises
    ------
    ConfigError
        When there is no such model, it cannot be built, or has no such weights.
    LoadError
        When the file of weights cannot be read or does not fit.
    """
    file = weights if weights is not None and os.path.exists(weights) else None
    known = weights if file is None else None
    sizes = {} if num_classes is None else {"num_classes": num_classes}
    if name.startswith("timm:"):
        model = _from_timm(name.removeprefix("timm:"), known, sizes)
    elif ":" in name:
        model = _from_factory(name, known)
    else:
        model = _from_torchvision(name, known, sizes)
    if file is not None:
        _load_weights(model, file)
    return model.eval()


def parse_inputs(texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
    """Make example inputs from shapes such as ``1,3,224,224`` or ``1,16:int64``.

    Parameters
    ----------
    texts : sequence of str
        One per input: sizes, and behind a colon the dtype if it is not float32.

    Returns
    -------
    tuple of Tensor
        Floating ones from the standard normal distribution, always the same values; others zero.

    Raises
    ------
    ConfigError
        When a text is no shape.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for text in texts:
        sizes, _, kind = text.partition(":")
        dtype = getattr(torch, kind or "float32", None)
        parts = sizes.replace("x", ",").split(",")
        if not all(part.strip().isdigit() for part in parts) or not isinstance(dtype, torch.dtype):
            raise ConfigError(
                "The --input option takes sizes, and a dtype behind a colon.",
                seen=text,
                hint="for example --input 1,3,224,224 or --input 1,16:int64",
            )
        shape = [int(part) for part in parts]
        if dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            made.append(torch.zeros(shape, dtype=dtype))
    return tuple(made)


def _from_torchvision(name: str, weights: str | None, sizes: Mapping[str, int]) -> nn.Module:
    names = torchvision_models.list_models()
    if name not in names:
        raise _unknown(name, "torchvision", names)
    options: dict[str, Any] = {"weights": weights, **sizes}
    builder = torchvision_models.get_model_builder(name)
    if weights is None and "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # by default a detector's backbone is downloaded
    return _built(
        lambda: builder(**options),
        f"torchvision model {name}",
        _options(weights),
    )


def _from_timm(name: str, weights: str | None, sizes: Mapping[str, int]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"The model timm:{name} needs timm, which is not installed.",
            hint="pip install 'fxprune[timm]'",
        ) from error
    if name.partition(".")[0] not in timm.list_models():
        raise _unknown(name, "timm", timm.list_models())
    if weights not in (None, "DEFAULT"):
        raise _no_weights(str(weights), "DEFAULT, or the path of a file with a state_dict")
    options: dict[str, Any] = {"pretrained": weights is not None, **sizes}
    return _built(
        lambda: timm.create_model(name, **options),
        f"timm model {name}",
        _options(weights),
    )


def _from_factory(name: str, weights: str | None) -> nn.Module:
    if weights is not None:
        raise _no_weights(weights, "the path of a file with a state_dict")
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise ConfigError("The model has no complete name.", seen=name, hint=f"give {_FORMS}")
    with _current_directory_importable():
        module = _import(path)
        factory: Any = module
        for part in attribute.split("."):
            factory = getattr(factory, part, None)
        if not callable(factory):
            callables = [key for key, value in vars(module).items() if callable(value)]
            raise _unknown(attribute, path, callables)
        return _built(factory, name, "the factory must work without arguments")


def _import(path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path != missing and not path.startswith(f"{missing}."):
            raise _not_importable(path, error) from error
        raise ConfigError(
            f"There is no Python module {path!r}.",
            seen=f"{missing!r} is neither installed nor in {Path.cwd()}",
            hint="start from the directory that holds it, or install it",
        ) from error
    except Exception as error:
        raise _not_importable(path, error) from error


def _not_importable(path: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"The Python module {path!r} cannot be imported.",
        seen=first_lines(error),
        hint="--debug shows where it fails",
    )


def _built(build: Callable[[], Any], what: str, hint: str) -> nn.Module:
    try:
        model = build()
    except Exception as error:
        raise ConfigError(
            f"The {what} cannot be built.", seen=first_lines(error), hint=hint
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"The {what} is not a torch.nn.Module.", seen=type(model).__name__, hint=hint
        )
    return model


def _load_weights(model: nn.Module, path: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:
        raise LoadError(
            "The weights cannot be loaded into the model.",
            where=path,
            seen=first_lines(error),
            hint="pass a file that torch.save(model.state_dict(), path) wrote for this model",
        ) from error


def _unknown(name: str, where: str, names: Sequence[str]) -> ConfigError:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"MODEL is {_FORMS}"
    return ConfigError(f"There is no {name!r} in {where}.", hint=hint)


def _no_weights(weights: str, allowed: str) -> ConfigError:
    return ConfigError(
        "The weights are neither a file nor known by name.", seen=weights, hint=f"pass {allowed}"
    )


def _options(weights: str | None) -> str:
    if weights is None:
        return "--debug shows where it fails"
    return "--weights takes the path of a file with a state_dict, or a name that the library knows"


class _CurrentDirectory:
    """Finds modules in the current directory, after all other places."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a top-level module; submodules are found through their package."""
        return PathFinder.find_spec(name, [os.getcwd()]) if path is None else None


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Let imports find modules of the current directory, as ``python -m`` does."""
    importlib.invalidate_caches()
    sys.meta_path.append(_CurrentDirectory)
    try:
        yield
    finally:
        sys.meta_path.remove(_CurrentDirectory)
