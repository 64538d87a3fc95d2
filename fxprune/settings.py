"""How a gated model was made, as plain JSON.

With the original architecture, enough to make it and its compact form again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxprune.analysis.policy import Attention
from fxprune.errors import ConfigError
from fxprune.inputs import Inputs

__all__ = [
    "FORMAT",
    "Recipe",
    "Settings",
    "check_branches",
    "check_round_to",
    "describe_inputs",
    "rebuild_inputs",
]

FORMAT = 2
"""Version of the recipe; a reader refuses newer ones."""


def check_round_to(value: object) -> None:
    """Raise a ConfigError unless `value` is a positive integer."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"The 'round_to' parameter must be a positive integer. Got {value!r} instead."
        )


def check_branches(value: object) -> None:
    """Raise a ConfigError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"The 'branches' parameter must be True or False. Got {value!r} instead.")


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
    borders : str
        JSON of what passes between the regions of a model that is captured in parts; empty for one
        that is captured whole.
    captured : str
        How a model that is captured whole was: the name of a way, see `fxprune.capture`.
    branches : bool
        Whether operands of residual adds are prunable.
    """

    inputs: str
    ignored: tuple[str, ...]
    round_to: int = 1
    attention: Attention = "both"
    borders: str = ""
    captured: str = ""
    branches: bool = False

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        ignored: Sequence[str],
        round_to: int = 1,
        attention: Attention = "both",
        branches: bool = False,
    ) -> Settings:
        """Describe example inputs and ignored names."""
        described = json.dumps(describe_inputs(inputs))
        return cls(described, tuple(ignored), round_to, attention, branches=branches)

    def with_inputs(self, inputs: Inputs, borders: str = "") -> Settings:
        """Return the same settings for other example inputs, and other borders."""
        return replace(self, inputs=json.dumps(describe_inputs(inputs)), borders=borders)

    def recipe(self, keep: Mapping[str, Tensor]) -> str:
        """Return the JSON recipe of a compact model.

        These settings and its masks (one character per unit).
        """
        masks = {
            name: "".join("1" if k else "0" for k in mask.tolist()) for name, mask in keep.items()
        }
        written = {
            "format": FORMAT,
            "inputs": json.loads(self.inputs),
            "ignored": self.ignored,
            "attention": self.attention,
            "keep": masks,
        }
        if self.branches:
            written["branches"] = True
        if self.borders:
            written["borders"] = json.loads(self.borders)
        if self.captured:
            written["captured"] = self.captured
        return json.dumps(written)


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
    borders, captured : str
    branches : bool
        As in `Settings`.
    """

    inputs: Inputs
    ignored: tuple[str, ...]
    attention: Attention
    keep: Mapping[str, Tensor]
    borders: str = ""
    captured: str = ""
    branches: bool = False

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
        keep = {
            name: torch.tensor([c == "1" for c in mask], dtype=torch.bool)
            for name, mask in data["keep"].items()
        }
        inputs = rebuild_inputs(data["inputs"])
        attention = data.get("attention", "both")
        borders = json.dumps(data["borders"]) if "borders" in data else ""
        captured, branches = data.get("captured", ""), bool(data.get("branches", False))
        return cls(inputs, tuple(data["ignored"]), attention, keep, borders, captured, branches)


def describe_inputs(inputs: Inputs) -> dict[str, Any]:
    """Return example inputs as plain values: structure, shapes and dtypes."""
    args, kwargs = inputs
    return {
        "args": [_describe(a) for a in args],
        "kwargs": {k: _describe(v) for k, v in kwargs.items()},
    }


def rebuild_inputs(data: Mapping[str, Any]) -> Inputs:
    """Return inputs of meta tensors from what `describe_inputs` returned."""
    args = tuple(_rebuild(a) for a in data["args"])
    return args, {k: _rebuild(v) for k, v in data["kwargs"].items()}


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list):
        return {"list": [_describe(v) for v in value]}
    if isinstance(value, tuple):
        return {"tuple": [_describe(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {str(k): _describe(v) for k, v in value.items()}}
    if isinstance(value, (bool, int, float, str)) or value is None:
        return {"value": value}
    return {"value": None}


def _rebuild(data: Any) -> Any:
    if "shape" in data:
        return torch.empty(data["shape"], dtype=getattr(torch, data["dtype"]), device="meta")
    if "list" in data:
        return [_rebuild(v) for v in data["list"]]
    if "tuple" in data:
        return tuple(_rebuild(v) for v in data["tuple"])
    if "dict" in data:
        return {k: _rebuild(v) for k, v in data["dict"].items()}
    return data["value"]
