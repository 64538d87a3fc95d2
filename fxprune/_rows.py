"""Finished runs as rows of a CSV file: appended one by one, read back to resume.

A row is a frozen dataclass of texts and numbers whose last field is JSON: that is whole when the
line is, so a line that was cut off is known from it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["RowType", "append_row", "read_rows"]

RowType = TypeVar("RowType", bound="DataclassInstance")


def read_rows(path: Path, kind: type[RowType]) -> list[RowType]:
    """Return the rows of a file in order; none when there is no file.

    A line that was cut off, by a crash or a full disk, is left out with a warning.
    """
    rows: list[RowType] = []
    if not path.exists():
        return rows
    types = get_type_hints(kind)
    for line in path.read_text().splitlines()[1:]:
        try:
            rows.append(_parse(line, kind, types))
        except ValueError:
            warnings.warn(f"{path}: left out {line!r}", stacklevel=2)
    return rows


def _parse(line: str, kind: type[RowType], types: dict[str, type]) -> RowType:
    """Return the row of one line, read on its own: a quote that a cut line opened ends with it."""
    names = [field.name for field in fields(kind)]
    values = dict(zip(names, next(csv.reader([line]), []), strict=True))
    json.loads(values[names[-1]])
    return kind(**{name: types[name](text) for name, text in values.items()})


def append_row(path: Path, row: DataclassInstance) -> None:
    """Append one row, on the disk when this returns; a cut line before it is ended first."""
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        text = _lines([[field.name for field in fields(row)]] if not size else [])
        if size:
            file.seek(-1, os.SEEK_END)
            text = "" if file.read(1) == b"\n" else "\n"
        file.write((text + _lines([astuple(row)])).encode())
        file.flush()
        os.fsync(file.fileno())


def _lines(records: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(records)
    return text.getvalue()
