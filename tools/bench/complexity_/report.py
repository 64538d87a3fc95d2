"""The rows as a page of tables and as a figure."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from complexity_.rows import Row
from fxprune._files import replacing
from fxprune._tables import percent, table
from fxprune.errors import ConfigError
from fxprune.plot import new_figure

__all__ = ["at_equal_cost", "draw", "page"]

_COLORS = {"units": "#0969da", "layers": "#bf8700", "both": "#1a7f37"}
_CURVE = (
    *("may leave", "price", "accuracy", "MACs", "parameters", "branches kept", "settled"),
    *("seconds", "runs"),
)


def page(rows: Sequence[Row], command: str) -> str:
    """Return the page in markdown."""
    versions = ", ".join(sorted({row.torch for row in rows}))
    hours = sum(row.seconds for row in rows if row.part != "latency") / 3600
    lines = [
        "# Complexity-aware training",
        "",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, python "
        f"{platform.python_version()}, torch {versions}; `{command}`. {len(rows)} rows, one thread "
        f"each, {hours:.1f} hours of training in all.",
        "",
        "Accuracy on all test images, of the compact network. MACs and parameters: share of the "
        "dense network's. Settled: share of the thetas within 0.05 of 0 or 1 when masks were "
        f"fixed; the others were resolved to the nearer end.{_settled(rows)} Branches kept: in "
        "each run; where none was removed, both is units only with other random numbers.",
        "",
        "Seconds of the trade-offs are of processes side by side, beside other work; what is to be "
        "compared in time is under *Training time* and ran alone.",
        "",
    ]
    for place, own in _places(rows, "curve").items():
        lines += [f"## Trade-off: {place}", "", table(_curve(own), _CURVE, "markdown"), ""]
        lines += _both_beside_either(own)
    return "\n".join([*lines, *_times(rows), *_latencies(rows)]).rstrip() + "\n"


def _settled(rows: Iterable[Row]) -> str:
    """Return in a sentence how many thetas had settled, over all runs that have some."""
    trained = [row for row in rows if row.settled >= 0]
    if not trained:
        return ""
    least = min(trained, key=lambda row: row.settled)
    return (
        f" Mean over the runs {percent(_mean(trained, 'settled'))}, least {percent(least.settled)} "
        f"({least.net} on {least.task}, {least.kind}, {least.value})."
    )


def _places(rows: Iterable[Row], part: str) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.part == part:
            epochs = f", {row.epochs} epochs" if row.epochs else ""
            found.setdefault(f"{row.net} on {row.task}{epochs}", []).append(row)
    return found


def _curve(rows: Sequence[Row]) -> list[list[object]]:
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row.kind, row.value), []).append(row)
    return [
        [
            kind,
            value,
            _spread([row.accuracy for row in own]),
            percent(_mean(own, "macs")),
            percent(_mean(own, "params")),
            "–" if kind == "units" else _branches(own),
            percent(_mean(own, "settled")),
            f"{_mean(own, 'seconds'):.0f}",
            str(len(own)),
        ]
        for (kind, value), own in sorted(cells.items(), key=lambda cell: _order(*cell[0]))
    ]


def _branches(rows: Iterable[Row]) -> str:
    """Return how many branches each run has kept."""
    return ", ".join(str(json.loads(row.settings)["branches_left"]) for row in rows)


def _both_beside_either(rows: Sequence[Row]) -> list[str]:
    """Return the table that sets units and layers together beside either alone, alpha 1.

    At the MACs of every point of the three curves, where both and one of the others reach so far.
    """
    points = {kind: _points(rows, kind, "macs") for kind in _COLORS}
    lines: dict[str, list[object]] = {}
    differences: dict[str, float] = {}
    for macs in sorted({macs for curve in points.values() for macs, _ in curve}):
        found = {kind: at_equal_cost(curve, macs) for kind, curve in points.items()}
        both = found.pop("both")
        known = [other for other in found.values() if other is not None]
        if both is None or not known:
            continue
        place = f"{macs:.1f} %"
        cells = ["–" if other is None else f"{other:.1f} %" for other in found.values()]
        differences[place] = both - max(known)
        lines[place] = [place, f"{both:.1f} %", *cells, f"{differences[place]:+.1f} points"]
    if not lines:
        return []
    headers = ("MACs", "both", "units", "layers", "both, less the better of these")
    text = (
        "Both beside either alone at the same MACs, read off the lines between the points of each; "
        f"median difference {statistics.median(differences.values()):+.1f} points:"
    )
    return [text, "", table(list(lines.values()), headers, "markdown"), ""]


def at_equal_cost(points: Sequence[tuple[float, float]], cost: float) -> float | None:
    """Return the accuracy that a curve has at a cost.

    Parameters
    ----------
    points : sequence of (float, float)
        Cost and accuracy, by rising cost.
    cost : float

    Returns
    -------
    float or None
        On the line between two points, over the logarithm of the cost. None outside of the curve.
    """
    if not points or not points[0][0] <= cost <= points[-1][0]:
        return None
    costs, accuracies = zip(*points, strict=True)
    return float(np.interp(math.log(cost), [math.log(c) for c in costs], accuracies))


def _order(kind: str, value: str) -> tuple[int, float, float]:
    """Return where a line belongs: by what may leave, then MACs before parameters, then price."""
    _, alpha, _, nu = value.split()
    return list(_COLORS).index(kind), -float(alpha), float(nu)


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f} %" if len(values) > 1 else f"{mean} %"


def _mean(rows: Iterable[Row], name: str) -> float:
    return float(statistics.mean(getattr(row, name) for row in rows))


def _times(rows: Sequence[Row]) -> list[str]:
    """Return the section on what cutting on the way saves."""
    lines: list[list[object]] = []
    for place, own in _places(rows, "time").items():
        kinds = {row.kind: row for row in own}
        if len(kinds) < 2:
            continue
        small, whole = kinds["shrinking"], kinds["masked only"]
        epochs = json.loads(small.settings)["epoch_seconds"]
        lines.append(
            [
                place,
                percent(small.macs),
                f"{whole.seconds:.0f}",
                f"{small.seconds:.0f}",
                f"{small.seconds / whole.seconds:.2f}",
                f"{percent(whole.accuracy)}, {percent(small.accuracy)}",
                " ".join(f"{seconds:.0f}" for seconds in epochs),
            ]
        )
    headers = (
        *("network", "MACs", "seconds, masked only", "seconds, shrinking", "ratio"),
        *("accuracy of both", "seconds per epoch, shrinking"),
    )
    text = (
        "Two runs in one process, one after the other, of the same seed: what has left is only "
        "masked, or cut out as training goes on."
    )
    if not lines:
        return []
    return ["## Training time", "", text, "", table(lines, headers, "markdown"), ""]


def _latencies(rows: Sequence[Row]) -> list[str]:
    """Return the section on layers against widths."""
    found: list[str] = []
    for place, own in _places(rows, "latency").items():
        one = json.loads(own[0].settings)
        text = (
            "Weights are those of initialisation. Depth: branches removed evenly; width: every "
            f"group narrowed alike. onnxruntime, {one['threads']} thread, batch {one['batch']}, "
            f"median of {one['repeats']} runs taken in turns."
        )
        lines = [
            [row.kind, percent(row.macs), percent(row.params), f"{1000 * row.seconds:.2f}"]
            for row in own
        ]
        headers = ("cut", "MACs", "parameters", "ms")
        found += [f"## Latency: {place}", "", text, "", table(lines, headers, "markdown"), ""]
    return found


def draw(rows: Sequence[Row], path: str | os.PathLike[str]) -> None:
    """Draw accuracy against MACs and against parameters, one line per kind; alpha 1.

    Raises
    ------
    ConfigError
        When matplotlib is not installed, there is no row, or the file cannot be written.
    """
    places = _places(rows, "curve")
    if not places:
        raise ConfigError("There are no rows to draw.", hint="run the bench first")
    figure = new_figure(4.2 * len(places), 7.6)
    from matplotlib.ticker import LogFormatter  # of an extra: new_figure says where it is missing

    panels = figure.subplots(2, len(places), squeeze=False)
    handles: dict[str, Any] = {}
    for column, (place, own) in enumerate(places.items()):
        for name, axes in zip(("macs", "params"), panels[:, column], strict=True):
            for kind, color in _COLORS.items():
                points = _points(own, kind, name)
                if points:
                    style = {"color": color, "marker": "o", "markersize": 4}
                    (handles[kind],) = axes.plot(*zip(*points, strict=True), **style)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(LogFormatter())  # 20, not 2 x 10^1
            axes.xaxis.set_minor_formatter(LogFormatter())
            axes.set_xlabel(
                f"{'MACs' if name == 'macs' else 'parameters'}, % of the dense network's"
            )
            axes.grid(alpha=0.3)
        panels[0, column].set_title(place, fontsize=10)
    panels[0, 0].set_ylabel("test accuracy, %")
    panels[1, 0].set_ylabel("test accuracy, %")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    target = Path(path)
    with replacing(target) as draft:
        figure.savefig(draft, format=target.suffix.lower().lstrip(".") or "png", dpi=150)


def _points(rows: Iterable[Row], kind: str, name: str) -> list[tuple[float, float]]:
    """Return share and accuracy in percent, means over the seeds, by rising share."""
    values: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == kind and row.value.startswith("alpha 1 "):
            values.setdefault(row.value, []).append(row)
    return sorted((100 * _mean(own, name), 100 * _mean(own, "accuracy")) for own in values.values())
