"""The dependency graph as a picture: a row per module, a lane per group, an arc per tie.

Rows are in the order of execution, so arcs that span many rows are residual streams and
concatenations. A group's lane is free again below its last module, which keeps the picture narrow;
its height grows with the number of modules, so that names stay legible in a large model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from fxprune.analysis.plan import Member, Plan
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.plot import check_picture, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_dependencies"]

_COLORS = ("#0969da", "#1a7f37", "#bf8700", "#cf222e", "#8250df", "#bf3989", "#0a7d91", "#57606a")
_ROW, _LANE, _LABEL = 0.2, 0.3, 3.2  # inches
_TALLEST = 600.0  # inches; beyond it rows come closer


@dataclass(frozen=True, slots=True)
class _Lane:
    """A group in the picture: its place from left to right, and the rows of its modules."""

    place: int
    color: str
    rows: Mapping[str, bool]  # whether the module makes the units, or only reads them


def plot_dependencies(gated: GatedModule, path: str | os.PathLike[str]) -> Path:
    """Draw which modules live and die together, and through which operations.

    Parameters
    ----------
    gated : GatedModule
    path : str or PathLike
        The file, ending in ``.svg``, ``.png`` or ``.pdf``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        When matplotlib is not installed, nothing is prunable, or the file cannot be written.

    Notes
    -----
    A filled mark says that the module makes the group's units, a ring that it only reads them.
    Modules without a mark are frozen.
    """
    target = check_picture(path)
    if not gated.groups:
        raise ConfigError(
            "There is no group to draw.", hint="print(fxprune.explain(model)) says why"
        )
    graph = _module_graph(gated.dependency_graph)
    rows = {module: row for row, module in enumerate(_modules(gated.plan))}
    lanes = _lanes(gated, rows)
    width = _LABEL + _LANE * (2 + max(lane.place for lane in lanes.values()))
    figure = new_figure(width, min(1 + _ROW * len(rows), _TALLEST))
    axes = figure.subplots()
    for name, lane in lanes.items():
        _draw_lane(axes, lane, rows, graph[name] if name in graph else nx.Graph())
    channels = [group for group in reversed(gated.groups) if group.kind != "branch"]
    sizes = {next(iter(lanes[group.name].rows)): group.size for group in channels}
    labels = [f"{name} ({sizes[name]})" if name in sizes else name for name in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=7)
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_xlim(-0.6, (width - _LABEL) / _LANE - 0.4)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(axis="y", linewidth=0.3, color="#d0d7de")
    axes.spines[:].set_visible(False)
    units = sum(group.size for group in gated.groups)
    axes.set_title(f"{len(gated.groups)} groups, {units} units", fontsize=9, loc="left")
    write_figure(figure, target)
    return target


def _module_of(member: Member) -> str:
    return member.fqn.rpartition(".")[0] or member.fqn


def _modules(plan: Plan) -> list[str]:
    """Return every module with a parameter axis, in the order of execution."""
    return list(dict.fromkeys(_module_of(Member(name, dim)) for name, dim in plan.axes))


def _module_graph(axes: nx.MultiGraph[Member]) -> dict[str, nx.Graph[str]]:
    """Return for each group the graph of its modules; an edge is an operation that ties two."""
    graphs: dict[str, nx.Graph[str]] = {}
    for a, b in axes.edges():
        ends = _module_of(a), _module_of(b)
        for group in set(axes.nodes[a]["groups"]) & set(axes.nodes[b]["groups"]):
            if ends[0] != ends[1]:
                graphs.setdefault(group, nx.Graph()).add_edge(*ends)
    return graphs


def _lanes(gated: GatedModule, rows: Mapping[str, int]) -> dict[str, _Lane]:
    """Give each group the leftmost lane that is free over all of its rows."""
    busy_until: list[int] = []
    lanes = {}
    spans = []
    for number, group in enumerate(gated.groups):
        mine: dict[str, bool] = {}
        for member in group.members:
            module = _module_of(member)
            if module not in rows:  # a branch takes modules along that have no channels
                continue
            makes = (member.fqn, member.dim) not in gated.plan.readers
            mine[module] = mine.get(module, False) or makes
        if not mine:
            continue
        mine = dict(sorted(mine.items(), key=lambda item: rows[item[0]]))
        places = [rows[module] for module in mine]
        spans.append((places[0], places[-1], number, group.name, mine))
    for first, last, number, name, mine in sorted(spans, key=lambda span: span[:3]):
        place = next((p for p, end in enumerate(busy_until) if end < first), len(busy_until))
        busy_until[place : place + 1] = [last]
        lanes[name] = _Lane(place, _COLORS[number % len(_COLORS)], mine)
    return lanes


def _draw_lane(axes: Axes, lane: _Lane, rows: Mapping[str, int], ties: nx.Graph[str]) -> None:
    """Draw a group's modules as marks, and its ties as arcs that bulge with their length."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    x = lane.place
    for a, b in ties.edges():
        top, bottom = sorted((rows[a], rows[b]))
        bulge = x + min(0.25 + 0.03 * (bottom - top), 0.9)
        points = [(x, top), (bulge, top), (bulge, bottom), (x, bottom)]
        codes = [Curve.MOVETO, *[Curve.CURVE4] * 3]
        axes.add_patch(
            PathPatch(Curve(points, codes), fill=False, edgecolor=lane.color, linewidth=0.8)
        )
    for makes in (True, False):
        found = [rows[module] for module, is_source in lane.rows.items() if is_source is makes]
        _mark(axes, x, found, lane.color, lane.color if makes else "white")


def _mark(axes: Axes, x: int, rows: Sequence[int], color: str, fill: str) -> None:
    axes.plot(
        [x] * len(rows),
        rows,
        linestyle="",
        marker="o",
        markersize=4,
        markeredgecolor=color,
        markerfacecolor=fill,
    )
