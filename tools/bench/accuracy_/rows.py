"""Finished runs as rows of a CSV file: appended one by one, read back to resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxprune._rows import read_rows

__all__ = ["Key", "Row", "read"]

Key = tuple[str, str, float, str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One finished run.

    Attributes
    ----------
    task, net, target, method, seed
        What was run. Of rows that agree in all five the last counts. The dense reference has
        target 1.
    epochs : int
        Of the whole run.
    accuracy : float
        Share of the test images that the final network classifies right.
    macs, params : float
        Share of the dense network's that the final network has.
    seconds : float
        Of the whole method on one thread.
    torch : str
        Version.
    settings : str
        Everything else that was set, as JSON.
    """

    task: str
    net: str
    target: float
    method: str
    seed: int
    epochs: int
    accuracy: float
    macs: float
    params: float
    seconds: float
    torch: str
    settings: str

    @property
    def key(self) -> Key:
        """What tells runs apart."""
        return self.task, self.net, self.target, self.method, self.seed


def read(path: Path) -> dict[Key, Row]:
    """Return the rows of a file by key, see `fxprune._rows.read_rows`."""
    return {row.key: row for row in read_rows(path, Row)}
