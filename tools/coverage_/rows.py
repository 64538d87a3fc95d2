"""What is known of one model after one tool has tried it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["PEER", "TOOLS", "Key", "Row"]

PEER = "torch-pruning"
TOOLS = ("fxprune", PEER)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Row:
    """One model and one tool.

    Attributes
    ----------
    model, tool : str
        What was tried. Of rows that agree in both the last counts.
    failed : str
        The stage that did not end well, empty when all did.
    reason : str
        Why not, in one line.
    seconds : float
        Of the whole process, the start of Python included.
    day : str
        When, in ISO format.
    found : str
        What the stages found, as JSON: an object per stage that ended.
    """

    model: str
    tool: str
    failed: str
    reason: str
    seconds: float
    day: str
    found: str

    @property
    def key(self) -> Key:
        """What tells rows apart."""
        return self.model, self.tool

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """What each stage that ended found."""
        return dict(json.loads(self.found))
