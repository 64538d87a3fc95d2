"""`train`: from a network and data to a small network, its ONNX file and its accuracy."""

from __future__ import annotations

import copy
import dataclasses
import functools
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.api import auto_gate
from fxprune.data import ImageData
from fxprune.errors import ConfigError, InternalError
from fxprune.gated import GatedModule
from fxprune.training import checkpoint, figure, log, random_state
from fxprune.training.batches import split_rows
from fxprune.training.checkpoint import Checkpoints
from fxprune.training.conclude import COMPACT, DENSE, SAVED, conclude, draw
from fxprune.training.distributed import Ranks, joined
from fxprune.training.fingerprint import fingerprint
from fxprune.training.log import Log, Row
from fxprune.training.methods import NEED_HELD_BACK
from fxprune.training.result import TrainingResult
from fxprune.training.settings import TrainSettings
from fxprune.training.sources import Datasets, Sources, check_classes, open_sources
from fxprune.training.stage import DENSE as DENSE_STAGE
from fxprune.training.stage import Clock, Feed, Stage

__all__ = ["FILES", "train"]

FILES = (
    *(checkpoint.NAME, checkpoint.PREVIOUS, log.NAME, figure.NAME),
    *(COMPACT, DENSE, SAVED),
)
"""Names of what a run writes into its folder."""

_log = logging.getLogger("fxprune")


def train(
    model: nn.Module,
    data: ImageData | Datasets,
    settings: TrainSettings,
    out: str | os.PathLike[str],
    resume: bool = False,
) -> TrainingResult:
    """Train a classifier once, and prune it while it trains.

    With ``settings.dense`` the same network is first trained without pruning, from the same
    weights. Afterwards the pruned network is cut out, compared with the gated one, written as ONNX
    and by `fxprune.save`, and its accuracy measured on the test data in onnxruntime.

    Parameters
    ----------
    model : nn.Module
        Never changed. Takes images of shape (n, 3, height, width), returns scores of shape (n,
        classes); further outputs in training count as auxiliary heads.
    data : ImageData or Datasets
        See `fxprune.data`.
    settings : TrainSettings
    out : str or PathLike
        Folder for ``checkpoint.pt`` and the one before it, ``log.csv``, ``log.png`` (with
        matplotlib), ``compact.onnx``, ``compact.pt`` and ``dense.onnx``; made if it is not there.
    resume : bool
        Go on from the folder's checkpoint; a run that was killed at any moment ends with the very
        weights of one that never was, where torch computes deterministically. Without a
        checkpoint the run starts from its beginning, with a warning.

    Returns
    -------
    TrainingResult
        ``print`` shows its tables. Progress goes to stderr.

    Raises
    ------
    ConfigError
        If an argument is wrong, `out` already holds a run and `resume` is not set, or the loss is
        not finite any more.
    BudgetError
        If the budget is out of range or cannot be reached; before anything is trained.
    LoadError
        If no checkpoint can be read, or it belongs to a run with other settings, another model or
        other data.
    CaptureError, InputError
        As from `fxprune.auto_gate`.
    VerificationError, ExportError
        If the result is not right.

    Notes
    -----
    Under torchrun every global batch is shared out over the processes, and the first one writes
    the files. The result is that of one process with the same batch size up to rounding, as long
    as the network has no BatchNorm: its batch statistics are those of each process's part.

    Torch's, numpy's and Python's global random states are afterwards what they were.
    """
    _check(model, settings)
    with joined(settings.device) as ranks, random_state.preserved(ranks.device):
        run = _Run(model, data, settings, Path(out), ranks)
        return run.finish(run.start(resume))


def _check(model: object, settings: object) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "The 'model' argument of train must be a torch.nn.Module.", seen=type(model).__name__
        )
    if not isinstance(settings, TrainSettings):
        raise ConfigError(
            "The 'settings' argument of train must be a TrainSettings.",
            seen=type(settings).__name__,
        )


class _Run:
    """The parts of one run; making them checks everything that can fail before training."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData | Datasets,
        settings: TrainSettings,
        folder: Path,
        ranks: Ranks,
    ) -> None:
        self._settings, self._folder, self._ranks = settings, folder, ranks
        self._clock = Clock()
        self._sources = open_sources(data, settings.seed, settings.workers)
        self._gated, self._dense = _networks(model, self._sources, settings, ranks)
        n = len(self._sources.train)
        rows, held = torch.arange(n), None
        if settings.method in NEED_HELD_BACK:
            rows, held = split_rows(n, settings.held_back, settings.seed)
        feeds = {settings.method: Feed.of(self._sources.train, rows, held, settings, ranks.world)}
        networks: dict[str, nn.Module] = {settings.method: self._gated}
        if settings.dense:
            # The dense network has no use for held-back samples either: it trains on all of them.
            every = Feed.of(self._sources.train, torch.arange(n), None, settings, ranks.world)
            feeds = {DENSE_STAGE: every, **feeds}
            networks[DENSE_STAGE] = self._dense
        self._stages = [
            Stage(name, networks[name], feed, settings, ranks) for name, feed in feeds.items()
        ]
        marks = fingerprint(
            settings, self._gated, self._sources.train, self._sources.test, ranks.world
        )
        self._checkpoints = Checkpoints(folder, marks)

    def start(self, resume: bool) -> tuple[Row, ...]:
        """Train what is left to train; return the whole log."""
        saved = self._ranks.agreed(lambda: self._open(resume))
        stages, rows = self._stages, []
        if saved is not None:
            names = [stage.name for stage in stages]
            stages = stages[names.index(saved["stage"]) :]
            if "initial" in saved:
                self._gated.load_state_dict(saved["initial"])
            if "trained" in saved:
                self._dense.load_state_dict(saved["trained"])
            stages[0].load_state_dict(saved)
            rows = [Row(*values) for values in saved["rows"]]
            self._clock.add(saved["seconds"])
        with Log(self._folder, rows, shown=self._ranks.is_main) as written:
            for stage in stages:
                stage.run(written, self._clock, functools.partial(self._save, stage, written))
        return tuple(written.rows)

    def finish(self, rows: tuple[Row, ...]) -> TrainingResult:
        """Make the compact network, write it and measure it."""
        controller = self._stages[-1].controller
        if controller is None:
            raise InternalError("the last stage of a run has no controller")
        selection = controller.finish()
        gated, dense = self._gated.cpu().eval(), self._dense.cpu().eval()
        compact = gated.compact()
        found = self._ranks.agreed(
            lambda: conclude(dense, gated, compact, self._sources, self._settings, self._folder)
        )
        drawn = self._ranks.agreed(lambda: draw(rows, self._settings, self._folder))
        return TrainingResult(
            dense=found.dense,
            compact=found.compact,
            selection=selection,
            settled=getattr(controller, "settled", None),
            nu=getattr(controller, "nu", None),
            verification=found.verification,
            epochs=self._settings.epochs,
            seconds=self._clock.seconds,
            rows=rows,
            files=(*found.files, self._folder / log.NAME, *drawn),
            gated=gated,
            network=compact,
            dense_network=dense,
        )

    def _open(self, resume: bool) -> dict[str, Any] | None:
        """Make the folder, or read what is there to go on from."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "The folder of the training run cannot be made.",
                where=str(self._folder),
                seen=f"{type(error).__name__}: {error.strerror}",
                hint="pass a folder that is writable",
            ) from error
        saved = self._checkpoints.read() if resume else None
        if saved is not None:
            return saved
        # A run that stopped before its first checkpoint left a log at most.
        there = [name for name in FILES if (self._folder / name).exists()]
        if there and not (resume and there == [log.NAME]):
            raise ConfigError(
                "The folder already holds a training run.",
                where=str(self._folder),
                seen=", ".join(there),
                hint="give another folder"
                if resume
                else "go on with it (--resume, or resume=True), or give another folder",
            )
        if resume:
            _log.warning(
                "There is no checkpoint in %s: the run starts from its beginning", self._folder
            )
        return None

    def _save(self, stage: Stage, written: Log) -> None:
        """Write a checkpoint of the run while this stage is under way."""
        state = {
            **stage.state_dict(),
            "rows": [list(dataclasses.astuple(row)) for row in written.rows],
            "seconds": self._clock.seconds,
        }
        if stage.name == DENSE_STAGE:
            state["initial"] = self._gated.state_dict()
        elif self._settings.dense:
            state["trained"] = self._dense.state_dict()
        self._ranks.agreed(lambda: self._checkpoints.write(state))


def _networks(
    model: nn.Module, sources: Sources, settings: TrainSettings, ranks: Ranks
) -> tuple[GatedModule, nn.Module]:
    """Return the gated and the plain network, from the same weights on every rank."""
    gated = auto_gate(
        model,
        sources.example,
        ignore=settings.ignore,
        round_to=settings.round_to,
        attention=settings.attention,
        branches=settings.with_branches,
    ).to(ranks.device)
    check_classes(gated, sources.example.to(ranks.device), sources.n_classes)
    dense = copy.deepcopy(model).to(ranks.device)
    for network in (gated, dense):
        ranks.same_tensors(network)
    return gated, dense
