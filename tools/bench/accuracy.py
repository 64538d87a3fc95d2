"""Compare what pruning methods leave of the accuracy, at equal epochs and equal MACs.

With the ``bench``, ``demo`` and ``plot`` extras installed::

    python tools/bench/accuracy.py [--jobs 2] [--seeds 0,1,2] [--only resnet20,0.3,ato]
    python tools/bench/accuracy.py --list
    python tools/bench/accuracy.py --only glyphs --only magnitude,narrow   # either, and either

Every finished run is one row of docs/bench_accuracy.csv; runs that have a row are skipped, so the
bench can be stopped and started again. Each ``--only`` is a comma list of tasks, networks, targets
and methods, of which a run must have one. Every run uses one thread. MACs are counted by torch on
the final network, accuracy is over all test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from accuracy_.methods import METHODS
from accuracy_.rows import Key, Row, append, read
from accuracy_.tasks import TASKS, Task, find_task, networks_module, set_up
from accuracy_.training import BATCH, accuracy
from torch import nn
from tqdm import tqdm

from fxprune.errors import ConfigError

__all__ = ["Row", "Task", "run"]

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
    if method not in METHODS:
        raise ConfigError(f"There is no method {method!r}.", hint=f"one of {', '.join(METHODS)}")
    task = dataclasses.replace(
        task,
        epochs=task.epochs if epochs is None else epochs,
        rate=task.rate if rate is None else rate,
    )
    setup = set_up(task, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        started = time.perf_counter()
        model = METHODS[method](setup, **overrides)
        seconds = time.perf_counter() - started
    full = setup.build(1.0)
    count_macs = networks_module().count_macs
    return Row(
        task=task.data,
        net=task.net,
        target=1.0 if method == "dense" else task.target,
        method=method,
        seed=seed,
        epochs=task.epochs,
        accuracy=accuracy(model, setup.data.test_images, setup.data.test_labels),
        macs=count_macs(model, setup.example) / count_macs(full, setup.example),
        params=_parameters(model) / _parameters(full),
        seconds=seconds,
        torch=torch.__version__,
        settings=json.dumps({"batch": BATCH, "rate": task.rate} | overrides, default=str),
    )


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _runs(seeds: Sequence[int], only: Sequence[str]) -> Iterator[tuple[Key, Task]]:
    """Yield every run that is asked for; the dense reference once per network."""
    filters = [set(part.split(",")) for part in only]
    seen = set()
    for seed in seeds:
        for task in TASKS:
            for method in METHODS:
                target = 1.0 if method == "dense" else task.target
                key = (task.data, task.net, target, method, seed)
                names = {task.data, task.net, f"{target:g}", method, task.name, f"seed{seed}"}
                if key not in seen and all(names & allowed for allowed in filters):
                    seen.add(key)
                    yield key, task


def _worker(task: str, method: str, seed: str) -> None:
    torch.set_num_threads(1)
    print(json.dumps(dataclasses.asdict(run(task, method, int(seed)))))


def _measure(task: Task, method: str, seed: int) -> Row | str:
    """Run in a process of its own; return its row, or the last line of its error."""
    command = [sys.executable, __file__, "--worker", task.name, method, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=None, text=True, check=False)
    if done.returncode:
        return f"{task.name} {method} {seed} failed"
    return Row(**json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", default=[], metavar="NAME,...")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--rows", type=Path, default=_ROWS, help="the file of finished runs")
    parser.add_argument("--list", action="store_true", help="list the runs and stop")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(*options.worker)
        return 0
    finished = read(options.rows)
    runs = list(_runs([int(seed) for seed in options.seeds.split(",")], options.only))
    if options.list:
        for key, _ in runs:
            print(*key, "done" if key in finished else "")
        return 0
    missing = [(key, task) for key, task in runs if key not in finished]
    failed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(_measure, task, key[3], key[4]) for key, task in missing]
        for future in tqdm(as_completed(futures), "runs", total=len(futures)):
            row = future.result()
            if isinstance(row, str):
                failed += 1
                tqdm.write(row)
            else:
                append(options.rows, row)
                tqdm.write(f"{row.key}: accuracy {row.accuracy:.4f}, MACs {row.macs:.4f}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
