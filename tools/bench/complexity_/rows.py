"""Finished runs as rows of a CSV file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxprune._rows import read_rows

__all__ = ["Key", "Row", "read"]

Key = tuple[str, str, str, str, str, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One finished run.

    Attributes
    ----------
    part : str
        ``"curve"``, ``"time"`` or ``"latency"``.
    task, net : str
    kind : str
        What may leave in a curve: ``"units"``, ``"layers"`` or ``"both"``. Else what is compared.
    value : str
        Of the curve: alpha and nu, as ``"alpha 1 nu 3"``. Else the share of MACs.
    seed : int
    epochs : int
    accuracy : float
        Share of the test images that the final network classifies right; -1 where none was trained.
    macs, params : float
        Share of the dense network's.
    settled : float
        Share of the thetas within 0.05 of 0 or 1 when the masks were fixed; -1 without thetas.
    seconds : float
        Of the whole run; of one forward in onnxruntime, for a latency.
    torch : str
        Version.
    settings : str
        Everything else, as JSON.
    """

    part: str
    task: str
    net: str
    kind: str
    value: str
    seed: int
    epochs: int
    accuracy: float
    macs: float
    params: float
    settled: float
    seconds: float
    torch: str
    settings: str

    @property
    def key(self) -> Key:
        """What tells runs apart."""
        return self.part, self.task, self.net, self.kind, self.value, self.seed


def read(path: Path) -> dict[Key, Row]:
    """Return the rows of a file by key, see `fxprune._rows.read_rows`."""
    return {row.key: row for row in read_rows(path, Row)}
