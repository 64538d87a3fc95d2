"""Compare what pruning methods leave of the accuracy, at equal epochs and equal MACs.

With the ``bench``, ``demo`` and ``plot`` extras installed::

    python tools/bench/accuracy.py --jobs 2 \\
        --markdown docs/bench_accuracy.md --figure docs/bench_accuracy.png
    python tools/bench/accuracy.py --list
    python tools/bench/accuracy.py --only glyphs/resnet20/0.5,0.3/ato --only digits///narrow

Every finished run is one row of docs/bench_accuracy.csv, and a run that has a row with the epochs
of its task is skipped: the bench can be stopped, started again, and spread over days. ``--only`` is
task/net/target/method/seed, each a comma list or empty for any; ends can be left out. Every run is
a process of one thread. The page and the figure are made from the rows of the file.

From Python, with tools/bench on the import path::

    from accuracy import run

    row = run("glyphs/resnet20/0.3", "ato", seed=0, every=2)
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accuracy_.methods import METHODS
from accuracy_.rows import Key, Row, read
from accuracy_.tables import draw, page
from accuracy_.tasks import TASKS, Setup, Task, find_task, networks_module, set_up
from accuracy_.training import BATCH, accuracy
from running import answer, fits, options_of, run_all, take_rows, write_page
from torch import nn

from fxprune._tables import percent
from fxprune.errors import ConfigError

__all__ = ["Row", "Task", "measure", "run"]

_ROWS = Path("docs/bench_accuracy.csv")


def run(
    task: Task | str,
    method: str,
    seed: int,
    *,
    epochs: int | None = None,
    rate: float | None = None,
    **overrides: Any,
) -> Row:
    """Train one network with one method and measure it; nothing is written.

    Parameters
    ----------
    task : Task or str
        Or its name, as ``"glyphs/resnet20/0.3"``.
    method : str
        A key of `METHODS`.
    seed : int
        Of the first weights, the order of the images and the method's own draws.
    epochs, rate
        In place of the task's.
    **overrides
        Further arguments of the method; those of ``"ato"`` go to `AutoTrainOnce`.

    Raises
    ------
    ConfigError
        If the task or the method is unknown.
    """
    task = find_task(task) if isinstance(task, str) else task
    task = dataclasses.replace(
        task,
        epochs=task.epochs if epochs is None else epochs,
        rate=task.rate if rate is None else rate,
    )
    return measure(set_up(task, seed), method, **overrides)


def measure(setup: Setup, method: str, **overrides: Any) -> Row:
    """Run a method on a `Setup`; see `run`."""
    if method not in METHODS:
        raise ConfigError(f"There is no method {method!r}.", hint=f"one of {', '.join(METHODS)}")
    task, data = setup.task, setup.data
    with torch.random.fork_rng():
        torch.manual_seed(setup.seed)
        started = time.perf_counter()
        model, settings = METHODS[method](setup, **overrides)
        seconds = time.perf_counter() - started
        full = setup.build(1.0)
    count_macs = networks_module().count_macs
    settings = {"batch": BATCH, "rate": task.rate, "images": len(data.train_images)} | settings
    return Row(
        task=task.data,
        net=task.net,
        target=1.0 if method == "dense" else task.target,
        method=method,
        seed=setup.seed,
        epochs=task.epochs,
        accuracy=accuracy(model, data.test_images, data.test_labels),
        macs=count_macs(model, setup.example) / count_macs(full, setup.example),
        params=_parameters(model) / _parameters(full),
        seconds=round(seconds, 1),
        torch=torch.__version__,
        settings=json.dumps(settings, default=str),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _runs(seeds: Sequence[int], only: Sequence[str]) -> Iterator[tuple[Key, Task]]:
    """Yield every run that is asked for; the dense reference once per network."""
    seen = set()
    for seed in seeds:
        for task in TASKS:
            for method in METHODS:
                target = 1.0 if method == "dense" else task.target
                key = (task.data, task.net, target, method, seed)
                if key not in seen and (not only or any(fits(key, part) for part in only)):
                    seen.add(key)
                    yield key, task


def _worker(task: str, method: str, seed: str) -> None:
    torch.set_num_threads(1)
    answer([dataclasses.asdict(run(task, method, int(seed)))])


def _note(row: Row) -> str:
    key = " ".join(map(str, row.key))
    return f"{key}: {percent(row.accuracy)}, {percent(row.macs)} MACs"


def _finished(rows: Mapping[Key, Row]) -> list[Row]:
    """Return the rows that belong to the bench as it is now: its tasks, with their epochs."""
    seeds = sorted({key[4] for key in rows})
    runs = ((rows.get(key), task) for key, task in _runs(seeds, ()))
    return [row for row, task in runs if row is not None and row.epochs == task.epochs]


def _report(rows: Sequence[Row], markdown: Path | None, figure: Path | None) -> None:
    if markdown:
        about = {name: (method.__doc__ or "").splitlines()[0] for name, method in METHODS.items()}
        write_page(markdown, page(rows, f"python {' '.join(sys.argv)}", about))
    if figure:
        draw(rows, figure)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = options_of(__doc__, "TASK/NET/TARGET/METHOD/SEED", _ROWS, "0,1,2")
    options = parser.parse_args(arguments)
    options.runs = list(_runs([int(seed) for seed in options.seeds.split(",")], options.only))
    if not options.runs:
        parser.error(f"no run fits --only {' '.join(options.only)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    if options.worker:
        _worker(*options.worker)
        return 0
    done = {row.key for row in _finished(read(options.rows))}
    if options.list:
        for key, _ in options.runs:
            print(*key, "done" if key in done else "")
        return 0
    missing = [one for one in options.runs if options.again or one[0] not in done]
    workers = {
        " ".join(map(str, key)): ["--worker", task.name, key[3], str(key[4])]
        for key, task in missing
    }
    take = functools.partial(take_rows, options.rows, Row, _note)
    failed = run_all(__file__, workers, options.jobs, take)
    _report(_finished(read(options.rows)), options.markdown, options.figure)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
