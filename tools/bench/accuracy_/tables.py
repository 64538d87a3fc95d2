"""The rows as a page of tables and as a figure."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accuracy_.rows import Row
from fxprune._files import replacing
from fxprune._tables import percent, table
from fxprune.errors import ConfigError
from fxprune.plot import new_figure

__all__ = ["Cell", "cells_of", "draw", "page"]

_HEADERS = ("MACs asked", "method", "accuracy", "MACs reached", "parameters", "seconds", "runs")
_DODGE = 1.02  # moves every method's points aside a little, or their bars hide one another
_COLORS = {
    "dense": "#57606a",
    "narrow": "#bf8700",
    "magnitude": "#8250df",
    "torch-pruning": "#1a7f37",
    "ato": "#0969da",
    "complexity": "#cf222e",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """All seeds of one method at one target.

    Attributes
    ----------
    mean, spread : float
        Of the accuracy: its mean and its sample standard deviation, 0 for a single run.
    macs, params, seconds : float
        Means.
    runs : int
    """

    mean: float
    spread: float
    macs: float
    params: float
    seconds: float
    runs: int


def cells_of(rows: Iterable[Row]) -> dict[tuple[str, str], dict[tuple[float, str], Cell]]:
    """Return the cells by (task, net), then by (target, method); targets fall."""
    groups: dict[tuple[str, str], dict[tuple[float, str], list[Row]]] = {}
    for row in rows:
        cells = groups.setdefault((row.task, row.net), {})
        cells.setdefault((row.target, row.method), []).append(row)
    return {
        place: {key: _cell(cells[key]) for key in sorted(cells, key=_order)}
        for place, cells in groups.items()
    }


def _order(key: tuple[float, str]) -> tuple[float, int]:
    target, method = key
    return -target, list(_COLORS).index(method)


def _cell(rows: Sequence[Row]) -> Cell:
    accuracies = [row.accuracy for row in rows]
    return Cell(
        statistics.mean(accuracies),
        statistics.stdev(accuracies) if len(rows) > 1 else 0.0,
        statistics.mean(row.macs for row in rows),
        statistics.mean(row.params for row in rows),
        statistics.mean(row.seconds for row in rows),
        len(rows),
    )


def page(rows: Sequence[Row], command: str, methods: Mapping[str, str]) -> str:
    """Return the page in markdown; the best accuracy at every target is bold.

    Parameters
    ----------
    rows : sequence of Row
    command : str
        What was called.
    methods : mapping of str to str
        A sentence about each.
    """
    lines = [
        "# Accuracy at equal MACs and equal epochs",
        "",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, python "
        f"{platform.python_version()}, torch {_versions(rows)}; `{command}`. {len(rows)} runs of "
        f"one thread each, {sum(row.seconds for row in rows) / 3600:.1f} hours of training in all.",
        "",
        "Accuracy on all test images: mean and standard deviation over the seeds. MACs are counted "
        "by torch on the final network.",
        "",
    ]
    for (task, net), cells in cells_of(rows).items():
        epochs = sorted({row.epochs for row in rows if (row.task, row.net) == (task, net)})
        lines += [f"## {net} on {task}, {', '.join(map(str, epochs))} epochs", ""]
        lines += [table(_lines(cells), _HEADERS, "markdown"), ""]
    lines += [f"* **{method}**: {text}" for method, text in methods.items()]
    return "\n".join(lines) + "\n"


def _versions(rows: Iterable[Row]) -> str:
    return ", ".join(sorted({row.torch for row in rows}))


def _lines(cells: Mapping[tuple[float, str], Cell]) -> list[list[object]]:
    best = {
        target: max(cell.mean for (other, _), cell in cells.items() if other == target)
        for target, _ in cells
    }
    lines: list[list[object]] = []
    for (target, method), cell in cells.items():
        spread = f" ± {100 * cell.spread:.1f}" if cell.runs > 1 else ""
        text = f"{100 * cell.mean:.1f}{spread} %"
        is_best = cell.mean == best[target] and method != "dense"
        lines.append(
            [
                percent(target),
                method,
                f"**{text}**" if is_best else text,
                percent(cell.macs),
                percent(cell.params),
                f"{cell.seconds:.0f}",
                str(cell.runs),
            ]
        )
    return lines


def draw(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Draw accuracy against MACs: one picture per task and network, one line per method.

    Raises
    ------
    ConfigError
        When matplotlib is not installed, there is no row, or the file cannot be written.
    """
    if not rows:
        raise ConfigError("There are no rows to draw.", hint="run the bench first")
    places = cells_of(rows)
    figure = new_figure(4.2 * len(places), 4.2)
    panels = figure.subplots(1, len(places), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, ((task, net), cells) in zip(panels, places.items(), strict=True):
        for method in dict.fromkeys(method for _, method in cells):
            points = [cell for (_, other), cell in cells.items() if other == method]
            aside = _DODGE ** (list(_COLORS).index(method) - len(_COLORS) // 2)
            handles[method] = axes.errorbar(
                [100 * cell.macs * aside for cell in points],
                [100 * cell.mean for cell in points],
                [100 * cell.spread for cell in points],
                color=_COLORS[method],
                marker="o",
                markersize=4,
                capsize=3,
            )
        axes.set_xscale("log")
        ticks = sorted({100 * target for target, _ in cells})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_title(f"{net} on {task}")
        axes.set_xlabel("MACs, % of the dense network's")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    target = Path(path)
    with replacing(target) as draft:
        figure.savefig(draft, format=target.suffix.lower().lstrip(".") or "png", dpi=150)
