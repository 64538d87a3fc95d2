"""What a training run found."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxprune._tables import Style, count, percent, table
from fxprune.budget import Selection
from fxprune.gated import GatedModule
from fxprune.training.evaluate import Accuracy
from fxprune.training.log import Row
from fxprune.verify import Verification

__all__ = ["NetworkFigures", "TrainingResult"]


@dataclass(frozen=True, slots=True)
class NetworkFigures:
    """One network's figures.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of one forward of one image.
    params : int
    accuracy : Accuracy or None
        On the test data; None if the network was not trained.
    onnx : Path or None
        Its ONNX file.
    onnx_error : float or None
        Largest difference between torch and onnxruntime, as a share of the output's largest
        magnitude.
    """

    macs: int
    params: int
    accuracy: Accuracy | None = None
    onnx: Path | None = None
    onnx_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return ``macs``, ``params`` and ``accuracy`` (in onnxruntime), JSON-serialisable."""
        share = None if self.accuracy is None else self.accuracy.share
        return {"macs": self.macs, "params": self.params, "accuracy": share}


@dataclass(frozen=True, slots=True, eq=False)
class TrainingResult:
    """What `fxprune.training.train` found; `str` gives tables.

    Attributes
    ----------
    dense, compact : NetworkFigures
        Of the network before pruning and after.
    selection : Selection
        What was asked of the masks and what they reach.
    settled : float or None
        Share of the structures that had been decided when masks were fixed; None where the method
        decides on all at once.
    nu : float or None
        What the dense network's complexity weighed against the loss in the end, where the method
        has such a price.
    verification : Verification
        Agreement of the gated with the compact network on test data.
    epochs : int
        Passes over the training data, of each network that was trained.
    seconds : float
        Time the run took, over all its sittings.
    rows : tuple of Row
        The log.
    files : tuple of Path
        What was written, checkpoints left out.
    gated : GatedModule
        The trained network with its final masks, on the CPU.
    network : nn.Module
        The compact network: ``gated.compact()``.
    dense_network : nn.Module
        The network without pruning; trained if settings.dense was set.
    """

    dense: NetworkFigures
    compact: NetworkFigures
    selection: Selection
    settled: float | None
    nu: float | None
    verification: Verification
    epochs: int
    seconds: float
    rows: tuple[Row, ...]
    files: tuple[Path, ...]
    gated: GatedModule
    network: nn.Module
    dense_network: nn.Module

    def __str__(self) -> str:
        lines = "\n".join(self.checks())
        written = "\n".join(str(path) for path in self.files)
        return f"{self.table('text')}\n\n{lines}\n\nWritten after {self.seconds:.0f} s\n\n{written}"

    def table(self, style: Style) -> str:
        """Return MACs, parameters and accuracy of both networks side by side."""
        a, b = self.dense, self.compact
        rows: list[tuple[str, ...]] = [
            ("MACs", count(a.macs), count(b.macs), percent(b.macs, a.macs)),
            ("parameters", count(a.params), count(b.params), percent(b.params, a.params)),
            ("epochs", "0" if a.accuracy is None else str(self.epochs), str(self.epochs), ""),
            ("accuracy, onnxruntime", *_shares(a, b, "share"), ""),
            ("accuracy, torch", *_shares(a, b, "torch_share"), ""),
        ]
        return table(rows, ("", "dense", "compact", "kept"), style)

    def checks(self) -> tuple[str, ...]:
        """Return in sentences what was checked and how it came out."""
        trained = [one for one in (self.dense, self.compact) if one.accuracy is not None]
        total = trained[0].accuracy.total if trained and trained[0].accuracy else 0
        differing = sum(one.accuracy.differing for one in trained if one.accuracy is not None)
        errors = [one.onnx_error for one in trained if one.onnx_error is not None]
        return (
            f"Budget: {self.selection}",
            *self._found(),
            "The compact model computes what the gated one computes: largest difference "
            f"{self.verification.max_abs_error:.1e}, {self.verification.max_rel_error:.1e} of the "
            "largest output",
            "The ONNX files compute what torch computes: largest relative difference "
            f"{max(errors, default=0.0):.1e}",
            f"torch and onnxruntime put {differing} of {total} test images into different classes",
        )

    def _found(self) -> tuple[str, ...]:
        if self.settled is None:
            return ()
        price = "" if self.nu is None else f"; the price was nu = {self.nu:.3g}"
        return (f"Decided before masks were fixed: {percent(self.settled)} of the units{price}",)

    def epoch_seconds(self) -> tuple[float, ...]:
        """Return how long each epoch of the pruned network took, as far as the log tells."""
        name = self.rows[-1].stage if self.rows else ""
        before = [row.seconds for row in self.rows if row.stage != name]
        ends = {row.epoch: row.seconds for row in self.rows if row.stage == name}
        marks = [before[-1] if before else 0.0, *ends.values()]
        return tuple(end - start for start, end in itertools.pairwise(marks))

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values.

        Returns
        -------
        dict
            JSON-serialisable: ``dense`` and ``compact`` (``macs``, ``params``, ``accuracy`` in
            onnxruntime, None if not trained), ``target`` (the share by its resource, None where
            a price decided), ``settled``, ``nu``, ``max_abs_error`` (gated against compact),
            ``seconds``, ``epoch_seconds`` (of the pruned network) and ``onnx`` (a path).
        """
        return {
            "dense": self.dense.to_dict(),
            "compact": self.compact.to_dict(),
            "target": {self.selection.resource: self.selection.target},
            "settled": self.settled,
            "nu": self.nu,
            "max_abs_error": self.verification.max_abs_error,
            "seconds": self.seconds,
            "epoch_seconds": [round(seconds, 3) for seconds in self.epoch_seconds()],
            "onnx": str(self.compact.onnx),
        }


def _shares(a: NetworkFigures, b: NetworkFigures, name: str) -> tuple[str, ...]:
    return tuple(
        "not trained" if one.accuracy is None else percent(getattr(one.accuracy, name))
        for one in (a, b)
    )
