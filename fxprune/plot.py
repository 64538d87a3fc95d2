"""Pictures of reports; matplotlib is imported only here, and only when a picture is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune._files import replacing
from fxprune.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_picture", "new_figure", "plot_widths", "write_figure"]

_FORMATS = (".png", ".svg", ".pdf")


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, which lays itself out.

    Raises
    ------
    ConfigError
        When matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "Pictures need matplotlib, which is not installed.", hint="pip install 'fxprune[plot]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Return a picture's path if its name says a format that can be written.

    Raises
    ------
    ConfigError
        When it does not.
    """
    target = Path(path)
    if target.suffix.lower() not in _FORMATS:
        raise ConfigError(
            "The picture's file name must end in .png, .svg or .pdf.", seen=target.name
        )
    return target


def write_figure(figure: Figure, target: Path) -> None:
    """Write a figure whole or not at all; the text of an SVG stays text, which can be searched."""
    from matplotlib import rc_context

    with (
        replacing(target) as draft,
        rc_context({"svg.fonttype": "none", "svg.hashsalt": target.name}),
    ):
        figure.savefig(draft, format=target.suffix.lower().lstrip("."), dpi=150)


def plot_widths(
    widths: Sequence[tuple[str, int, int]], title: str, path: str | os.PathLike[str]
) -> Path:
    """Draw widths before and after as bars.

    Parameters
    ----------
    widths : sequence of (str, int, int)
        Name, width before and width after; one bar each, from top to bottom.
    title : str
        Shown above the bars.
    path : str or PathLike
        The file, ending in ``.png``, ``.svg`` or ``.pdf``.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfigError
        When matplotlib is not installed, there is nothing to draw, or the file cannot be written.
    """
    target = check_picture(path)
    if not widths:
        raise ConfigError("There are no widths to draw.", hint="report a gated model before")
    figure = new_figure(8, 1.5 + 0.22 * len(widths))
    axes = figure.subplots()
    places = range(len(widths))
    axes.barh(places, [before for _, before, _ in widths], color="#d0d7de", label="before")
    axes.barh(places, [after for _, _, after in widths], color="#0969da", label="kept")
    axes.set_yticks(places, [name for name, _, _ in widths], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("units")
    axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2)
    write_figure(figure, target)
    return target
