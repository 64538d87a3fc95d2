"""How a gated model was made, as plain JSON.

With the original architecture, enough to make it and its compact form again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis.policy import Attention
from fxprune.errors import ConfigError
from fxprune.inputs import Inputs

__all__ = ["FORMAT", "Recipe", "Settings", "check_round_to"]

FORMAT = 2
"""Version of the recipe; a reader refuses newer ones."""


def check_round_to(value: object) -> None:
    """Raise a ConfigError unless `value` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"The 'round_to' parameter must be a positive integer. Got {value!r} instead."
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of `fxprune.auto_gate`, reduced to what can be written down.

    Attributes
    ----------
    inputs : str
        JSON of the example inputs' structure, shapes and dtypes.
    ignored : tuple[str, ...]
        Names of the parameters and buffers that were ignored.
    round_to : int
        What widths are rounded to when a budget chooses them.
    attention : {"head", "head_dim", "both", "off"}
        What of attention is prunable.
    """

    inputs: str
    ignored: tuple[str, ...]
    round_to: int = 1
    attention: Attention = "both"

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        ignored: Sequence[str],
        round_to: int = 1,
        attention: Attention = "both",
    ) -> Settings:
        """Describe example inputs and ignored names."""
        args, kwargs = inputs
        described = {
            "args": [_describe(a) for a in args],
            "kwargs": {k: _describe(v) for k, v in kwargs.items()},
        }
        return cls(json.dumps(described), tuple(ignored), round_to, attention)

    def recipe(self, keep: Mapping[str, Tensor]) -> str:
        """Return the JSON recipe of a compact model.

        These settings and its masks (one character per unit).
        """
        masks = {
            name: "".join("1" if k else "0" for k in mask.tolist()) for name, mask in keep.items()
        }
        return json.dumps(
            {
                "format": FORMAT,
                "inputs": json.loads(self.inputs),
                "ignored": self.ignored,
                "attention": self.attention,
                "keep": masks,
            }
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe read back.

    Attributes
    ----------
    inputs : tuple (args, kwargs)
        Meta tensors of the example inputs' shapes.
    ignored : tuple[str, ...]
    attention : {"head", "head_dim", "both", "off"}
    keep : dict of str to bool Tensor
    """

    inputs: Inputs
    ignored: tuple[str, ...]
    attention: Attention
    keep: Mapping[str, Tensor]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read a recipe.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the text is no recipe, or of a newer format.
        """
        data = json.loads(text)
        if data["format"] > FORMAT:
            raise ValueError(f"format {data['format']} is newer than {FORMAT}")
        args = tuple(_rebuild(a) for a in data["inputs"]["args"])
        kwargs = {k: _rebuild(v) for k, v in data["inputs"]["kwargs"].items()}
        keep = {
            name: torch.tensor([c == "1" for c in mask], dtype=torch.bool)
            for name, mask in data["keep"].items()
        }
        attention = data.get("attention", "both")
        return cls((args, kwargs), tuple(data["ignored"]), attention, keep)


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return {"list": [_describe(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {str(k): _describe(v) for k, v in value.items()}}
    if isinstance(value, (bool, int, float, str)) or value is None:
        return {"value": value}
    return {"value": None}


def _rebuild(data: Any) -> Any:
    if "shape" in data:
        return torch.empty(data["shape"], dtype=getattr(torch, data["dtype"]), device="meta")
    if "list" in data:
        return tuple(_rebuild(v) for v in data["list"])
    if "dict" in data:
        return {k: _rebuild(v) for k, v in data["dict"].items()}
    return data["value"]
