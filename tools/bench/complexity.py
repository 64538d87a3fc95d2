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
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from complexity_.report import draw, page
from complexity_.rows import Key, Row, append, read
from complexity_.runs import Run, all_runs, do
from tqdm import tqdm

from fxprune._files import replacing

_ROWS = Path("docs/bench_complexity.csv")


def _fits(key: Key, pattern: str) -> bool:
    """Tell whether a run is one of ``part/task/net/kind/value/seed``."""
    names = [str(part) for part in key]
    wanted = pattern.split("/")
    return len(wanted) <= len(names) and all(
        not part or name in part.split(",") for name, part in zip(names, wanted, strict=False)
    )


def _in_process(run: Run) -> list[Row] | None:
    """Do a run in a process of its own; it writes its error itself, and there are no rows then."""
    command = [sys.executable, __file__, "--worker", "/".join(map(str, run.key))]
    command += ["--seeds", str(run.key[-1])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        return None
    return [Row(**values) for values in json.loads(done.stdout.splitlines()[-1])]


def _worker(name: str, seeds: tuple[int, ...]) -> None:
    torch.set_num_threads(1)
    (run,) = [run for run in all_runs(seeds) if "/".join(map(str, run.key)) == name]
    print(json.dumps([dataclasses.asdict(row) for row in do(run)]))


def _run_all(missing: Sequence[Run], rows: Path) -> int:
    """Run what is missing, append what is finished; return how many failed."""
    failed = 0
    for run in tqdm(missing, "runs"):
        found = _in_process(run)
        name = " ".join(map(str, run.key))
        if found is None:
            failed += 1
            tqdm.write(f"{name}: failed")
            continue
        for row in found:
            append(rows, row)
            tqdm.write(
                f"{' '.join(map(str, row.key))}: {100 * row.accuracy:.2f} %, "
                f"{100 * row.macs:.2f} % MACs, {row.seconds:.3g} s"
            )
    return failed


def _report(rows: Sequence[Row], markdown: Path | None, figure: Path | None) -> None:
    if markdown:
        with replacing(markdown) as draft:
            draft.write_text(page(rows, f"python {' '.join(sys.argv)}"))
    if figure:
        draw(rows, figure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART/TASK/NET/KIND/VALUE/SEED"
    )
    parser.add_argument("--seeds", default="0", help="comma list (0)")
    parser.add_argument("--again", action="store_true", help="run what has a row, too")
    parser.add_argument("--rows", type=Path, default=_ROWS, help="the file of finished runs")
    parser.add_argument("--list", action="store_true", help="list the runs, run nothing")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--figure", type=Path, help="draw the figure into this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    seeds = tuple(int(seed) for seed in options.seeds.split(","))
    options.runs = [
        run
        for run in all_runs(seeds)
        if not options.only or any(_fits(run.key, only) for only in options.only)
    ]
    options.seeds = seeds
    if not options.runs:
        parser.error(f"no run fits --only {' '.join(options.only)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker:
        _worker(options.worker, options.seeds)
        return 0
    done = read(options.rows)
    if options.list:
        for run in options.runs:
            print(*run.key, "done" if run.key in done else "")
        return 0
    missing = [run for run in options.runs if options.again or run.key not in done]
    failed = _run_all(missing, options.rows)
    _report(list(read(options.rows).values()), options.markdown, options.figure)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
