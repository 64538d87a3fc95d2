"""What passes between captured regions and the Python code around them, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fxprune.inputs import Inputs
from fxprune.settings import describe_inputs, rebuild_inputs

__all__ = ["Borders", "Leaf", "MisfitError", "RegionCall", "region_key", "split_key"]

Leaf = tuple[str, int]
"""A tensor that a region takes or returns: the region's path, and which of its tensors."""


class MisfitError(Exception):
    """A part of a model cannot be a region; it is given up, and its children are tried.

    Parameters
    ----------
    path : str
        The part.
    why : str
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


def region_key(path: str, mode: str) -> str:
    """Return the name of a region's graph of one mode."""
    return f"{path}:{mode}"


def split_key(key: str) -> tuple[str, str]:
    """Return path and mode of a graph's name; the path is empty for a model captured whole."""
    path, _, mode = key.rpartition(":")
    return path, mode


@dataclass(frozen=True, slots=True)
class RegionCall:
    """A call of a region by the Python code, as one run of the model showed it.

    Attributes
    ----------
    path : str
        The region.
    inputs : tuple of (tuple, dict)
        Arguments; of the tensors only shapes and dtypes count.
    sources : tuple of (Leaf or None)
        For every tensor among the arguments, in order: the result of a region that was handed on
        untouched; None when Python code made it.
    count : int
        How many calls were like this one.
    """

    path: str
    inputs: Inputs
    sources: tuple[Leaf | None, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Borders:
    """What one run of a model showed of its regions.

    Attributes
    ----------
    calls : tuple of RegionCall
        In the order of their first occurrence.
    read : mapping of Leaf to str
        Results of regions that anything but a region uses, with what does.
    tensors : mapping of str to str
        Parameters and buffers of regions that the Python code uses as well, with how.
    macs : int
        Multiply-accumulates outside of all regions.
    """

    calls: tuple[RegionCall, ...]
    read: Mapping[Leaf, str]
    tensors: Mapping[str, str]
    macs: int

    @property
    def paths(self) -> tuple[str, ...]:
        """The regions, in the order they are first called."""
        return tuple(dict.fromkeys(call.path for call in self.calls))

    def to_json(self) -> str:
        """Return it as JSON, from which `from_json` makes it again."""
        calls = [
            {
                "path": call.path,
                "inputs": describe_inputs(call.inputs),
                "sources": call.sources,
                "count": call.count,
            }
            for call in self.calls
        ]
        read = [[*leaf, why] for leaf, why in self.read.items()]
        return json.dumps(
            {"calls": calls, "read": read, "tensors": dict(self.tensors), "macs": self.macs}
        )

    @classmethod
    def from_json(cls, text: str) -> Borders:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError, KeyError, TypeError
            If the text is something else.
        """
        data: Any = json.loads(text)
        calls = tuple(
            RegionCall(
                str(call["path"]),
                rebuild_inputs(call["inputs"]),
                tuple(None if s is None else (str(s[0]), int(s[1])) for s in call["sources"]),
                int(call["count"]),
            )
            for call in data["calls"]
        )
        read = {(str(path), int(place)): str(why) for path, place, why in data["read"]}
        tensors = {str(name): str(why) for name, why in data["tensors"].items()}
        return cls(calls, read, tensors, int(data["macs"]))
