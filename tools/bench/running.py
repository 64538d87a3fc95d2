"""What the benches share: every run is a process of its own, every finished one a row of a file."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fxprune._files import replacing
from fxprune._rows import RowType, append_row

__all__ = ["answer", "fits", "options_of", "run_all", "take_rows", "write_page"]

Found = list[dict[str, Any]]


def fits(key: Sequence[object], pattern: str) -> bool:
    """Tell whether a run's key fits a pattern: a comma list per part, or nothing for any."""
    names = [f"{part:g}" if isinstance(part, float) else str(part) for part in key]
    wanted = pattern.split("/")
    return len(wanted) <= len(names) and all(
        not part or name in part.split(",") for name, part in zip(names, wanted, strict=False)
    )


def options_of(about: str | None, form: str, rows: Path, seeds: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all benches have.

    Parameters
    ----------
    about : str
        Its first line is shown by ``--help``.
    form : str
        What ``--only`` takes, as ``TASK/NET/SEED``.
    rows : Path
        The file of finished runs by default.
    seeds : str
        The seeds by default, a comma list.
    """
    parser = argparse.ArgumentParser(description=about.splitlines()[0] if about else None)
    parser.add_argument("--only", action="append", default=[], metavar=form)
    parser.add_argument("--seeds", default=seeds, help=f"comma list ({seeds})")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (1)")
    parser.add_argument("--again", action="store_true", help="run what has a row, too")
    parser.add_argument("--rows", type=Path, default=rows, help="the file of finished runs")
    parser.add_argument("--list", action="store_true", help="list the runs, run nothing")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--figure", type=Path, help="draw the figure into this file")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return parser


def answer(rows: Found) -> None:
    """Print what a worker found, for the process that started it."""
    print(json.dumps(rows))


def _in_process(script: str, arguments: Sequence[str], quiet: bool) -> Found | None:
    """Run a worker of one thread; it writes its error itself, and there are no rows then."""
    command = [sys.executable, script, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({"TQDM_DISABLE": "1"} if quiet else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode:
        return None
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def run_all(
    script: str, runs: Mapping[str, Sequence[str]], jobs: int, take: Callable[[Found], list[str]]
) -> int:
    """Do runs, each in a process; return how many failed.

    Parameters
    ----------
    script : str
        The bench.
    runs : mapping of str to sequence of str
        The arguments of every run by its name.
    jobs : int
        Processes side by side.
    take : callable
        Keeps the rows of a finished run and returns what to print of them.
    """
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {
            pool.submit(_in_process, script, arguments, jobs > 1): name
            for name, arguments in runs.items()
        }
        try:
            for future in tqdm(as_completed(waiting), "runs", total=len(waiting)):
                found = future.result()
                if found is None:
                    failed += 1
                    tqdm.write(f"{waiting[future]}: failed")
                    continue
                for line in take(found):
                    tqdm.write(line)
        except BaseException:  # an interrupt too must not start the runs that wait
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failed


def take_rows(
    path: Path, kind: type[RowType], note: Callable[[RowType], str], found: Found
) -> list[str]:
    """Append the rows of a run to a file; return a note on each.

    Parameters
    ----------
    path : Path
    kind : type
        The dataclass of the rows.
    note : callable
        Returns what to print of a row.
    found : list of dict
        The fields of each row.
    """
    rows = [kind(**values) for values in found]
    for row in rows:
        append_row(path, row)
    return [note(row) for row in rows]


def write_page(path: Path, text: str) -> None:
    """Write a page in place of the one that is there."""
    with replacing(path) as draft:
        draft.write_text(text)
