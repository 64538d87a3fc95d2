"""The picture of a run's log; matplotlib is imported only when it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fxprune._files import replacing
from fxprune.plot import new_figure
from fxprune.training.log import Row

__all__ = ["NAME", "plot_log"]

NAME = "log.png"
_COLOURS = {"dense": "#8c959f"}
_OTHER = "#0969da"


def plot_log(rows: Sequence[Row], resource: str, target: float | None, path: Path) -> Path:
    """Draw loss, training accuracy and what the masks keep over the steps.

    Parameters
    ----------
    rows : sequence of Row
        At least one.
    resource : str
        ``"macs"`` or ``"params"``.
    target : float or None
        Share of it asked for, if any was; a dashed line.
    path : Path
        The file, ending in ``.png``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        When matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(11, 3.2)
    loss, accuracy, kept = figure.subplots(1, 3)
    for stage in dict.fromkeys(row.stage for row in rows):
        own = [row for row in rows if row.stage == stage]
        steps = [row.step for row in own]
        style = {"color": _COLOURS.get(stage, _OTHER), "label": stage, "marker": "."}
        loss.plot(steps, [row.loss for row in own], **style)
        accuracy.plot(steps, [100 * row.accuracy for row in own], **style)
        kept.plot(steps, [100 * row.expected for row in own], **style)
    if target is not None:
        kept.axhline(100 * target, color="#cf222e", linestyle="--", label="target")
    loss.set_yscale("log")
    for axes, title in (
        (loss, "task loss"),
        (accuracy, "training accuracy, %"),
        (kept, f"{'MACs' if resource == 'macs' else 'parameters'} kept by the masks, %"),
    ):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("optimizer step")
        axes.grid(alpha=0.3)
    kept.set_ylim(0, 105)
    handles, labels = kept.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    with replacing(path) as draft:
        figure.savefig(draft, format="png", dpi=120)
    return path
