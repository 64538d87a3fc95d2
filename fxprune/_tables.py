"""How numbers and tables look: one place for units, percentages and table styles."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Literal

from tabulate import tabulate

__all__ = ["Style", "count", "file_size", "html_page", "percent", "shape_text", "table"]

Style = Literal["text", "markdown", "html"]

_FORMATS = {"text": "simple", "markdown": "pipe", "html": "html"}
_STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .75rem; text-align: left; }
"""
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], style: Style = "text") -> str:
    """Return rows as a table; cells of strings stay as they are, numbers go to the right.

    Parameters
    ----------
    rows : iterable of sequences
        One sequence per row, as long as `headers`.
    headers : sequence of str
        One per column.
    style : {"text", "markdown", "html"}
        How it is written.

    Returns
    -------
    str
        Without a newline at its end.
    """
    cells = [[_cell(value, style) for value in row] for row in rows]
    names = [0] if cells else False  # tabulate knows no column of a table without rows
    return tabulate(cells, headers, tablefmt=_FORMATS[style], disable_numparse=names)


def _cell(value: object, style: Style) -> object:
    return value.replace("|", "\\|") if style == "markdown" and isinstance(value, str) else value


def count(number: float) -> str:
    """Return a number with three digits and a unit: ``1814073344`` becomes ``1.81 G``."""
    for step, unit in _STEPS:
        if number >= 0.9995 * step:
            return f"{_three(number / step)} {unit}"
    return _three(number) if isinstance(number, float) else str(number)


def file_size(number: int) -> str:
    """Return a number of bytes with three significant digits, in powers of 1000."""
    text = count(number)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def percent(part: float, whole: float = 1.0) -> str:
    """Return a share with one decimal; only all is 100 %, only nothing is 0 %, of nothing n/a."""
    if not whole:
        return "n/a"
    share = 100 * part / whole
    if share != 0 and abs(share) < 0.05:
        return "< 0.1 %"
    return "> 99.9 %" if 99.95 <= share < 100 else f"{share:.1f} %"


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as ``64x3x7x7``; a shape without axes is ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"


def _three(number: float) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def html_page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a whole HTML page.

    Parameters
    ----------
    title : str
        Title of the page.
    sections : iterable of (str, str)
        Headings as plain text, and what stands below them in HTML.

    Returns
    -------
    str
        The page; it refers to no other file.
    """
    body = "\n".join(f"<h2>{html.escape(heading)}</h2>\n{text}" for heading, text in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}</style>\n{body}\n</html>\n"
    )
