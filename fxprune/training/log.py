"""What a run shows and writes down while it goes: a progress bar and a table of rows."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from tqdm import tqdm

from fxprune._files import replacing
from fxprune._tables import percent

__all__ = ["NAME", "Log", "Row"]

NAME = "log.csv"
_SLOW = 10.0  # seconds between two updates of a bar that nobody watches


@dataclass(frozen=True, slots=True)
class Row:
    """A stretch of training.

    Attributes
    ----------
    stage : str
        ``"dense"`` or the controller's name.
    step, epoch : int
        Optimizer steps done, and the epoch the last one was of, from 1.
    loss : float
        Mean task loss since the row before.
    accuracy : float
        Share classified right of the training samples since the row before.
    lr : float
        Learning rate of the last step.
    phase : str
        The controller's; ``"dense"`` without one.
    expected : float
        Share of the resource that the controller's masks keep.
    seconds : float
        Time the run took so far, without what was lost between a checkpoint and a stop.
    """

    stage: str
    step: int
    epoch: int
    loss: float
    accuracy: float
    lr: float
    phase: str
    expected: float
    seconds: float


class Log:
    """The rows of a run, in memory and in ``log.csv``, and its progress bar.

    Parameters
    ----------
    folder : Path
    rows : sequence of Row
        Those of the checkpoint; the file is written anew with just them, so that none is missing
        and none comes twice.
    shown : bool
        Whether this process writes and shows anything.
    """

    def __init__(self, folder: Path, rows: Sequence[Row], *, shown: bool) -> None:
        self.rows = list(rows)
        self._shown = shown
        self._path = folder / NAME
        self._bar: tqdm[Any] | None = None
        self._file: TextIO | None = None
        if shown:
            with replacing(self._path) as draft, draft.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(field.name for field in dataclasses.fields(Row))
                writer.writerows(dataclasses.astuple(row) for row in rows)
            self._file = self._path.open("a", newline="")

    def add(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        if self._file is not None:
            csv.writer(self._file).writerow(dataclasses.astuple(row))
            self._file.flush()

    def begin(self, stage: str, done: int, steps: int) -> None:
        """Show a new bar for a stage, of which so many steps are done."""
        interval = 0.1 if sys.stderr.isatty() else _SLOW
        self._bar = tqdm(
            total=steps,
            initial=done,
            desc=stage,
            unit="step",
            disable=not self._shown,
            mininterval=interval,
        )

    def show(
        self, loss: float, accuracy: float, phase: str, expected: float, resource: str
    ) -> None:
        """Show figures beside the bar from its next update on."""
        if self._bar is not None:
            figures = {"loss": f"{loss:.3f}", "accuracy": percent(accuracy)}
            if phase:
                figures |= {resource: percent(expected), "phase": phase}
            self._bar.set_postfix(figures, refresh=False)

    def advance(self) -> None:
        """Move the bar by a step."""
        if self._bar is not None:
            self._bar.update()

    def end(self) -> None:
        """Close the bar of the stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        if self._file is not None:
            self._file.close()
            self._file = None
