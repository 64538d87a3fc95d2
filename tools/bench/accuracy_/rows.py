"""Finished runs as rows of a CSV file: appended one by one, read back to resume."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

__all__ = ["Key", "Row", "append", "read"]

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


_NAMES = [field.name for field in fields(Row)]
_PARSERS = {"str": str, "int": int, "float": float}
_TYPES = {field.name: _PARSERS[str(field.type)] for field in fields(Row)}


def read(path: Path) -> dict[Key, Row]:
    """Return the rows of a file by key; none when there is no file.

    A line that was cut off, by a crash or a full disk, is left out with a warning.
    """
    if not path.exists():
        return {}
    rows = {}
    for line in path.read_text().splitlines()[1:]:
        try:
            row = _parse(line)
        except ValueError:
            print(f"{path}: left out {line!r}", file=sys.stderr)
            continue
        rows[row.key] = row
    return rows


def _parse(line: str) -> Row:
    """Return the row of one line, read on its own: a quote that a cut line opened ends with it."""
    values = dict(zip(_NAMES, next(csv.reader([line]), []), strict=True))
    json.loads(values["settings"])  # the last cell: it is whole when the line is
    return Row(**{name: _TYPES[name](text) for name, text in values.items()})


def append(path: Path, row: Row) -> None:
    """Append one row, on the disk when this returns; a cut line before it is ended first."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        text = _lines([_NAMES] if not size else [])
        if size:
            file.seek(-1, os.SEEK_END)
            text = "" if file.read(1) == b"\n" else "\n"
        values = asdict(row).values()
        file.write((text + _lines([values])).encode())
        file.flush()
        os.fsync(file.fileno())


def _lines(records: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue()
