"""The end of a run: prove, export, save and measure what was trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune.errors import ConfigError
from fxprune.export import export_onnx
from fxprune.gated import GatedModule
from fxprune.measure import count_macs, count_params
from fxprune.serialize import save
from fxprune.training import figure
from fxprune.training.batches import Samples
from fxprune.training.evaluate import measure_accuracy
from fxprune.training.log import Row
from fxprune.training.result import NetworkFigures
from fxprune.training.settings import TrainSettings
from fxprune.training.sources import Sources
from fxprune.verify import Verification, verify
from fxprune.whole import whole_form

__all__ = ["COMPACT", "DENSE", "SAVED", "Findings", "conclude", "draw"]

COMPACT, DENSE, SAVED = "compact.onnx", "dense.onnx", "compact.pt"
_log = logging.getLogger("fxprune")


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured at the end of a run.

    Attributes
    ----------
    dense, compact : NetworkFigures
    verification : Verification
    files : tuple of Path
    """

    dense: NetworkFigures
    compact: NetworkFigures
    verification: Verification
    files: tuple[Path, ...]


def conclude(
    dense: nn.Module,
    gated: GatedModule,
    compact: nn.Module,
    sources: Sources,
    settings: TrainSettings,
    folder: Path,
) -> Findings:
    """Write the files of a run and measure them.

    Parameters
    ----------
    dense : nn.Module
        Exported too if the settings say that it was trained.
    gated : GatedModule
    compact : nn.Module
        All three on the CPU and in eval mode.
    sources : Sources
    settings : TrainSettings
    folder : Path

    Returns
    -------
    Findings

    Raises
    ------
    VerificationError
        If gated and compact network do not agree.
    ExportError
        If a network cannot be exported, or its file computes something else.
    """
    images, _ = next(iter(sources.test.batches(_first_rows(sources.test, settings.batch_size))))
    # A shrunk network is its compact form, nearly: what was trained is compared with the masks.
    whole = whole_form(gated, dense) if gated.was_shrunk else gated
    verification = verify(whole.eval(), compact, images)
    files = [folder / SAVED]
    save(compact, files[0])
    figures = []
    for network, name, trained in ((dense, DENSE, settings.dense), (compact, COMPACT, True)):
        macs, params = count_macs(network, sources.example), count_params(network)
        if not trained:
            figures.append(NetworkFigures(macs, params))
            continue
        export = export_onnx(network, folder / name, sources.example)
        files.append(export.path)
        accuracy = measure_accuracy(network, export.path, sources.test, settings.batch_size)
        figures.append(NetworkFigures(macs, params, accuracy, export.path, export.max_rel_error))
    return Findings(figures[0], figures[1], verification, tuple(files))


def draw(rows: Sequence[Row], settings: TrainSettings, folder: Path) -> tuple[Path, ...]:
    """Draw the log where matplotlib is installed; return the files written, one or none."""
    try:
        return (figure.plot_log(rows, *settings.target, folder / figure.NAME),)
    except ConfigError as error:
        _log.info("%s", error)
        return ()


def _first_rows(samples: Samples, n: int) -> list[Tensor]:
    return [torch.arange(min(n, len(samples)))]
