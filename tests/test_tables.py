from __future__ import annotations

import pytest

from fxprune._tables import count, file_size, html_page, percent, shape_text, table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (9_994, "9.99 k"),
        (9_996, "10.0 k"),
        (99_960, "100 k"),
        (999_600, "1.00 M"),
        (1_814_073_344, "1.81 G"),
        (2.5e13, "25.0 T"),
    ],
)
def test_counts_have_three_digits(number, text):
    assert count(number) == text


def test_file_sizes_are_in_bytes():
    assert [file_size(n) for n in (12, 46_785_305)] == ["12 B", "46.8 MB"]


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (1, 2, "50.0 %"),
        (0, 5, "0.0 %"),
        (5, 5, "100.0 %"),
        (99_999, 100_000, "> 99.9 %"),
        (1, 100_000, "< 0.1 %"),
        (3, 2, "150.0 %"),
        (1, 0, "n/a"),
    ],
)
def test_percentages_round_neither_to_all_nor_to_nothing(part, whole, text):
    assert percent(part, whole) == text


def test_shapes():
    assert [shape_text(s) for s in ((64, 3, 7, 7), (5,), ())] == ["64x3x7x7", "5", "scalar"]


def test_tables_keep_names_as_they_are():
    rows = [("1e5", 3), ("a|b", 4)]
    assert table(rows, ("name", "n"), "markdown").splitlines()[2:] == [
        "| 1e5    |   3 |",
        "| a\\|b   |   4 |",
    ]
    assert "<td>a|b   </td>" in table(rows, ("name", "n"), "html")
    assert table([("<b>", 1)], ("name", "n"), "html").count("&lt;b&gt;") == 1


def test_a_table_without_rows_has_its_headers():
    assert table([], ("name", "units")).splitlines()[0].split() == ["name", "units"]


def test_pages_escape_their_headings():
    page = html_page("a < b", [("x & y", "<p>text</p>")])
    assert page.startswith("<!doctype html>")
    assert page.count("a &lt; b") == page.count("<h2>x &amp; y</h2>\n<p>text</p>") == 1
