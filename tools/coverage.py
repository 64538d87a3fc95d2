"""Gate, cut and compare every model of torchvision, each in a process of its own.

With the ``bench`` extra installed, from the root of a checkout::

    python tools/coverage.py --jobs 2 --markdown docs/coverage.md
    python tools/coverage.py --jobs 2 --peers --markdown docs/coverage.md   # torch-pruning's part
    python tools/coverage.py --only resnet,vit --no-onnx
    python tools/coverage.py --zoo timm --no-onnx --limit-memory 6 --markdown docs/coverage_timm.md
    python tools/coverage.py --timm resnet26d,levit_128 --rows timm.csv --markdown timm.md

Every finished model is one row of docs/coverage.csv, and a model that has a row is left out the
next time: the sweep can be stopped, started again and spread over sittings. ``--again`` tries those
that failed once more, ``--all`` every one. A model that raises, crashes its process, or needs more
than it may have is a row like any other, with the stage and the reason. The page is made from the
rows; the process ends with the failures by name, and with status 1 if fxprune failed at any.
``--zoo timm`` tries one model of each of timm's families; its rows are in docs/coverage_timm.csv.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from coverage_.processes import limit_memory, report_stages, run_worker
from coverage_.rows import PEER, TOOLS, Key, Row
from tqdm import tqdm

from fxprune._files import replacing
from fxprune._rows import append_row, read_rows

__all__ = ["main", "measure"]

_ROWS = {"": Path("docs/coverage.csv"), "timm": Path("docs/coverage_timm.csv")}  # by --zoo


def measure(name: str, tool: str, *, onnx: bool, gib: float, seconds: float) -> Row:
    """Try one model with one tool in a process of its own.

    Parameters
    ----------
    name : str
        A name of torchvision, or ``timm:NAME``.
    tool : {"fxprune", "torch-pruning"}
    onnx : bool
        Whether to export as well.
    gib, seconds : float
        Limits of the process.
    """
    command = [sys.executable, __file__, "--worker", tool, name, "--limit-memory", str(gib)]
    command += [] if onnx else ["--no-onnx"]
    outcome = run_worker(command, seconds)
    return Row(
        name,
        tool,
        outcome.failed,
        outcome.reason,
        outcome.seconds,
        datetime.date.today().isoformat(),
        json.dumps(outcome.found),
    )


def _worker(tool: str, name: str, onnx: bool, gib: float) -> None:
    limit_memory(gib)
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes where errors go
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from coverage_.gating import Gating
    from coverage_.peer import Peer
    from coverage_.subjects import subject

    tried = subject(name)
    stages = Peer(tried).stages() if tool == PEER else Gating(tried, onnx=onnx).stages()
    report_stages(stages, said)


def _names(options: argparse.Namespace) -> list[str]:
    from coverage_.subjects import all_names
    from coverage_.zoo import TIMM

    given = TIMM.values() if options.zoo else options.timm.split(",")
    timm = [f"timm:{name}" for name in given if name]
    names = timm if timm and not options.torchvision else all_names(timm)
    parts = [part for part in options.only.split(",") if part]
    return [name for name in names if not parts or any(part in name for part in parts)]


def _is_done(row: Row | None, options: argparse.Namespace) -> bool:
    """Tell whether a row makes another try needless."""
    if row is None or options.all:
        return False
    if row.failed:
        return not options.again
    return row.tool == PEER or not options.onnx or "compact onnx" in row.stages


def _run_all(missing: Sequence[Key], options: argparse.Namespace) -> None:
    """Try what is missing; append every row when it is there."""
    limits = {"gib": options.limit_memory, "seconds": options.limit_seconds}
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [
            pool.submit(measure, name, tool, onnx=options.onnx, **limits) for name, tool in missing
        ]
        try:
            for future in tqdm(as_completed(waiting), "models", total=len(waiting)):
                row = future.result()
                append_row(options.rows, row)
                told = f"{row.failed}: {row.reason}" if row.failed else "ok"
                tqdm.write(f"{row.model} {row.tool} ({row.seconds} s): {told}")
        except BaseException:  # an interrupt too must not start the models that wait
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _conclude(names: Sequence[str], rows: Mapping[Key, Row], options: argparse.Namespace) -> int:
    """Write the page, name the failures, return the exit status."""
    if options.markdown:
        from coverage_.page import page

        seconds, gib = options.limit_seconds, options.limit_memory
        limits = f"Limits per model: {seconds:g} s and {gib:g} GiB of memory."
        text = page(names, rows, f"python {' '.join(sys.argv)}", limits)
        with replacing(options.markdown) as draft:
            draft.write_text(text)
    tried = [rows[name, tool] for tool in TOOLS for name in names if (name, tool) in rows]
    for tool in TOOLS:
        mine = [row for row in tried if row.tool == tool]
        failed = [row for row in mine if row.failed]
        if mine:
            print(f"{tool}: {len(mine) - len(failed)} of {len(mine)}")
        for row in failed:
            print(f"  {row.model}: {row.failed}: {row.reason}")
    return int(any(row.failed for row in tried if row.tool != PEER))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", metavar="PART,..", help="names that hold a part")
    parser.add_argument("--timm", default="", metavar="NAME,..", help="these of timm instead")
    parser.add_argument("--zoo", choices=("timm",), default="", help="one model of each family")
    parser.add_argument("--torchvision", action="store_true", help="with --timm: torchvision's too")
    parser.add_argument("--peers", action="store_true", help="torch-pruning instead of fxprune")
    parser.add_argument("--no-onnx", dest="onnx", action="store_false", help="write no ONNX files")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--limit-memory", type=float, default=12, metavar="GIB", help="each (12)")
    parser.add_argument("--limit-seconds", type=float, default=240, metavar="S", help="each (240)")
    parser.add_argument("--again", action="store_true", help="try what failed before, too")
    parser.add_argument("--all", action="store_true", help="try everything again")
    parser.add_argument("--rows", type=Path, help="the file of finished models")
    parser.add_argument("--list", action="store_true", help="list the models, try nothing")
    parser.add_argument("--markdown", type=Path, help="write the page to this file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.rows = options.rows or _ROWS[options.zoo]
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker:
        tool, name = options.worker
        _worker(tool, name, options.onnx, options.limit_memory)
        return 0
    names = _names(options)
    tool = PEER if options.peers else "fxprune"
    rows = {row.key: row for row in read_rows(options.rows, Row)}
    missing = [(name, tool) for name in names if not _is_done(rows.get((name, tool)), options)]
    if options.list:
        for name in names:
            print(name, "" if (name, tool) in missing else "done")
        return 0
    _run_all(missing, options)
    return _conclude(names, {row.key: row for row in read_rows(options.rows, Row)}, options)


if __name__ == "__main__":
    raise SystemExit(main())
