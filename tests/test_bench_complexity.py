"""The bench of complexity-aware training: its rows, its page, and one short run of every part."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxprune._rows import append_row

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bench() -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "bench"))
        yield importlib.import_module("complexity")


@pytest.fixture(scope="module")
def runs(bench):
    return importlib.import_module("complexity_.runs")


@pytest.fixture(scope="module")
def found(bench, runs):
    """The rows of one short run of each part."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "_REPEATS", 5)
        wanted = ["curve/digits/resnet20/both/alpha 1 nu 3", "time/digits", "latency"]
        for run in runs.all_runs((0,)):
            if any(bench.fits(run.key, only) for only in wanted):
                net = "resnet20"
                short = dataclasses.replace(run.task, net=net, epochs=min(run.task.epochs, 1))
                rows += runs.do(dataclasses.replace(run, task=short))
    return rows


def test_every_network_of_the_bench_can_be_built(runs) -> None:
    nets = {(run.task.data, run.task.net): run.task for run in runs.all_runs((0,))}
    for task in nets.values():
        setup = runs.set_up(task, 0)
        assert setup.build(1.0)(setup.example.expand(2, -1, -1, -1)).dim() == 2


def test_every_part_gives_its_rows(found) -> None:
    kinds = [(row.part, row.kind) for row in found]
    assert kinds == [
        ("curve", "both"),
        ("time", "masked only"),
        ("time", "shrinking"),
        *(("latency", kind) for kind in ("dense", "width", "depth")),
    ]
    curve, masked, shrinking, dense, width, depth = found
    assert 0 < curve.macs < 1
    assert 0 <= curve.settled <= 1
    assert len(json.loads(curve.settings)["epoch_seconds"]) == 1
    assert abs(shrinking.macs - 0.1) < 0.002
    assert abs(masked.macs - 0.1) < 0.002
    assert (dense.macs, dense.params) == (1, 1)
    assert abs(width.macs - depth.macs) < 0.01
    assert 0.3 < depth.macs < 0.7


def test_rows_come_back_and_make_a_page_and_a_figure(bench, found, tmp_path) -> None:
    path = tmp_path / "rows.csv"
    for row in found:
        append_row(path, row)
    back = list(bench.read(path).values())
    assert back == found
    text = bench.page(back, "python bench")
    for heading in ("## Trade-off", "## Training time", "## Latency"):
        assert heading in text
    bench.draw(back, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_curves_are_compared_at_equal_cost(bench) -> None:
    report = importlib.import_module("complexity_.report")
    points = [(10.0, 60.0), (40.0, 80.0)]
    assert report.at_equal_cost(points, 20.0) == pytest.approx(70.0)
    assert report.at_equal_cost(points, 10.0) == pytest.approx(60.0)
    assert report.at_equal_cost(points, 90.0) is None
    assert report.at_equal_cost(points, 9.0) is None
    assert report.at_equal_cost([], 9.0) is None


def test_both_is_set_beside_the_better_of_the_two(bench, found) -> None:
    def row(kind: str, nu: int, macs: float, accuracy: float):
        value = f"alpha 1 nu {nu}"
        return dataclasses.replace(found[0], kind=kind, value=value, macs=macs, accuracy=accuracy)

    rows = [
        *(row("units", 1, 0.4, 0.8), row("units", 3, 0.1, 0.6), row("layers", 1, 0.2, 0.65)),
        *(row("both", 1, 0.2, 0.72), row("both", 3, 0.1, 0.5), row("both", 10, 0.01, 0.3)),
    ]
    lines = bench.page(rows, "bench").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line for line in cells if len(line) == 5 and line[0][:1].isdigit()] == [
        ["10.0 %", "50.0 %", "60.0 %", "–", "-10.0 points"],
        ["20.0 %", "72.0 %", "70.0 %", "65.0 %", "+2.0 points"],
    ]
    assert any("median difference -4.0 points" in line for line in lines)


def test_what_has_a_row_is_skipped(bench, found, tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "rows.csv"
    for row in found:
        append_row(path, row)
    options = ["--rows", str(path), "--only", "time/digits", "--only", "latency"]
    running = importlib.import_module("running")
    monkeypatch.setattr(running, "_in_process", lambda *_: pytest.fail("a run was done"))
    assert bench.main(options) == 0
    assert bench.main([*options, "--list"]) == 0
    assert capsys.readouterr().out.count("done") == 2


def test_a_pattern_that_fits_nothing_is_refused(bench, capsys) -> None:
    with pytest.raises(SystemExit):
        bench.main(["--only", "nothing"])
    assert "no run fits --only nothing" in capsys.readouterr().err
