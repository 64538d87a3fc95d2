"""What complexity-aware training trades, saves and leaves undecided.

With the ``demo`` and ``plot`` extras installed::

    python tools/bench/complexity.py \\
        --markdown docs/bench_complexity.md --figure docs/bench_complexity.png
    python tools/bench/complexity.py --list
    python tools/bench/complexity.py --only curve/digits --only time/glyphs/resnet20

Trade-off curves over nu, for units only, layers only and both, and alpha 0 and 1; the time of a run
that cuts out what has left beside one that only masks it; the latency of a network with fewer
layers beside one with fewer units and as many MACs.

Every finished run is one row of docs/bench_complexity.csv, and a run that has a row is skipped: the
bench can be stopped, started again, and spread over days. ``--only`` is
part/task/net/kind/value/seed, each a comma list or empty for any; ends can be left out. Every run
is a process of one thread. The page and the figure are made from the rows of the file. How it
compares with other methods is in ``tools/bench/accuracy.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from complexity_.report import draw, page
from complexity_.rows import Row, read
from complexity_.runs import all_runs, do
from running import answer, fits, options_of, run_all, take_rows, write_page

from fxprune._tables import percent

_ROWS = Path("docs/bench_complexity.csv")


def _worker(name: str, seeds: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    (run,) = [run for run in all_runs(seeds) if "/".join(map(str, run.key)) == name]
    answer([dataclasses.asdict(row) for row in do(run)])


def _note(row: Row) -> str:
    key = " ".join(map(str, row.key))
    return f"{key}: {percent(row.accuracy)}, {percent(row.macs)} MACs, {row.seconds:.3g} s"


def _report(rows: Sequence[Row], markdown: Path | None, figure: Path | None) -> None:
    if markdown:
        write_page(markdown, page(rows, f"python {' '.join(sys.argv)}"))
    if figure:
        draw(rows, figure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, "PART/TASK/NET/KIND/VALUE/SEED", _ROWS, "0")
    options = parser.parse_args(arguments)
    options.seeds = tuple(int(seed) for seed in options.seeds.split(","))
    options.runs = [
        run
        for run in all_runs(options.seeds)
        if not options.only or any(fits(run.key, only) for only in options.only)
    ]
    if not options.runs:
        parser.error(f"no run fits --only {' '.join(options.only)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker:
        (name,) = options.worker
        _worker(name, options.seeds)
        return 0
    done = read(options.rows)
    if options.list:
        for run in options.runs:
            print(*run.key, "done" if run.key in done else "")
        return 0
    missing = [run for run in options.runs if options.again or run.key not in done]
    take = functools.partial(take_rows, options.rows, Row, _note)
    failed = 0
    for timed, jobs in ((False, options.jobs), (True, 1)):  # what is timed runs alone
        names = ["/".join(map(str, r.key)) for r in missing if (r.key[0] != "curve") == timed]
        workers = {name: ["--worker", name, "--seeds", name.rpartition("/")[2]] for name in names}
        failed += run_all(__file__, workers, jobs, take)
    _report(list(read(options.rows).values()), options.markdown, options.figure)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
