"""The runs of the bench, and how each is done."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accuracy_.tasks import Setup, Task, set_up
from accuracy_.training import BATCH, accuracy, fit, make_optimizer, steps_of

import fxprune
from complexity_.rows import Key, Row
from fxprune.controllers import ComplexityAware
from fxprune.gated import GatedModule
from fxprune.latency import compare_latency

__all__ = ["Run", "all_runs", "do"]

KINDS = {"units": 0.0, "layers": 1.0, "both": 0.5}
"""What may leave, with its beta."""

NUS = {
    "units": (0.3, 1.0, 3.0, 10.0),
    "layers": (0.3, 1.0, 1.5, 2.0, 3.0, 10.0),
    "both": (0.3, 1.0, 3.0, 10.0),
}
"""The prices; layers leave all at once or not at all, between two of these."""

_CURVES = (
    Task("digits", "resnet20", 1.0, 10, 0.1),
    Task("glyphs", "resnet20", 1.0, 8, 0.2),
    Task("glyphs", "mobilenet_v2", 1.0, 10, 0.1),
)
_DEEP = Task("digits", "resnet56", 1.0, 12, 0.05)
_DEEP_NU = 3.0
_TIMES = (
    Task("digits", "resnet18", 0.1, 10, 0.05),
    Task("glyphs", "resnet20", 0.1, 8, 0.2),
    Task("glyphs", "mobilenet_v2", 0.1, 10, 0.1),
)
_LATENCY = Task("glyphs", "resnet56", 0.5, 0, 0.1)
_REPEATS = 200


@dataclass(frozen=True, slots=True)
class Run:
    """One thing to do; it gives one row or several."""

    key: Key
    task: Task
    alpha: float = 1.0
    nu: float | None = None


def all_runs(seeds: tuple[int, ...]) -> Iterator[Run]:
    """Yield every run of the bench; times and latencies are measured for the first seed only."""
    for seed in seeds:
        for task in _CURVES:
            yield from _curve(task, seed, (1.0, 0.0))
    first = seeds[0]
    yield from _curve(_DEEP, first, (1.0,), (_DEEP_NU,))
    for task in _TIMES:
        yield Run(("time", task.data, task.net, "shrinking", f"{task.target:g}", first), task)
    target = f"{_LATENCY.target:g}"
    yield Run(("latency", _LATENCY.data, _LATENCY.net, "depth", target, first), _LATENCY)


def _curve(
    task: Task, seed: int, alphas: tuple[float, ...], nus: tuple[float, ...] | None = None
) -> Iterator[Run]:
    for alpha in alphas:
        for kind in KINDS if alpha == 1 else ("both",):
            for nu in nus or NUS[kind]:
                value = f"alpha {alpha:g} nu {nu:g}"
                yield Run(("curve", task.data, task.net, kind, value, seed), task, alpha, nu)


def do(run: Run) -> list[Row]:
    """Do a run and return its rows."""
    part, seed = run.key[0], run.key[-1]
    setup = set_up(run.task, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if part == "curve":
            return [_trained(run, setup, nu=run.nu, alpha=run.alpha, beta=KINDS[run.key[3]])]
        if part == "time":
            return _timed(run, setup)
        return _latencies(run, setup)


def _trained(run: Run, setup: Setup, kind: str | None = None, **arguments: Any) -> Row:
    """Train once; the row is that of the run, or of another kind."""
    task, data = setup.task, setup.data
    torch.manual_seed(setup.seed)
    beta = arguments.get("beta", 0.5)
    gated = fxprune.auto_gate(setup.build(1.0), setup.example, branches=beta > 0)
    optimizer = make_optimizer(gated, task.rate)
    given = {"shrink": True} | arguments
    controller = ComplexityAware(
        gated,
        optimizer,
        steps=steps_of(len(data.train_images), task.epochs),
        seed=setup.seed,
        **given,
    )
    marks = [time.perf_counter()]
    per_epoch = steps_of(len(data.train_images), 1)

    def after_step() -> None:
        controller.step()
        if controller.steps_done % per_epoch == 0:
            marks.append(time.perf_counter())

    fit(
        gated,
        data.train_images,
        data.train_labels,
        epochs=task.epochs,
        rate=task.rate,
        seed=setup.seed,
        what=run.key[3],
        optimizer=optimizer,
        after_step=after_step,
    )
    seconds = time.perf_counter() - marks[0]
    controller.finish()
    epochs = [round(b - a, 2) for a, b in itertools.pairwise(marks)]
    settings = given | {"batch": BATCH, "nu": controller.nu, "epoch_seconds": epochs}
    cost, dense, compact = gated.cost(), gated.dense_cost, gated.compact()
    key = run.key if kind is None else (*run.key[:3], kind, *run.key[4:])
    return Row(
        *key,
        epochs=task.epochs,
        accuracy=accuracy(compact, data.test_images, data.test_labels),
        macs=cost.macs / dense.macs,
        params=cost.params / dense.params,
        settled=controller.settled,
        seconds=round(seconds, 1),
        torch=torch.__version__,
        settings=json.dumps(settings | {"branches_left": _branches_left(gated)}),
    )


def _branches_left(gated: GatedModule) -> int:
    return sum(group.kind == "branch" for group in gated.groups)


def _timed(run: Run, setup: Setup) -> list[Row]:
    """Train with and without cutting out what has left, one after the other in this process.

    The row of the run comes last: while it is missing, neither counts.
    """
    plain = _trained(run, setup, "masked only", macs=setup.task.target, shrink=False)
    return [plain, _trained(run, setup, macs=setup.task.target, shrink=True)]


def _latencies(run: Run, setup: Setup) -> list[Row]:
    """Measure a network with fewer layers beside one with fewer units and as many MACs.

    Nothing is trained: run times do not depend on weights.
    """
    deep = fxprune.auto_gate(setup.build(1.0), setup.example, branches=True)
    _drop_branches(deep, setup.task.target)
    share = deep.cost().macs / deep.dense_cost.macs
    thin = fxprune.auto_gate(setup.build(1.0), setup.example)
    even = torch.cat([torch.linspace(1, 0, group.size) for group in thin.groups])
    fxprune.select(thin, macs=share, importance=even)
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for kind, model in (("dense", setup.build(1.0)), ("width", thin), ("depth", deep)):
            compact = model.eval().compact() if isinstance(model, GatedModule) else model.eval()
            paths[kind] = str(Path(folder, f"{kind}.onnx"))
            fxprune.export_onnx(compact, paths[kind], setup.example)
        found = compare_latency(paths, setup.example, repeats=_REPEATS)
    costs = {"dense": thin.dense_cost, "width": thin.cost(), "depth": deep.cost()}
    dense = thin.dense_cost
    return [
        Row(
            *(*run.key[:3], kind, *run.key[4:]),
            epochs=0,
            accuracy=-1.0,
            macs=costs[kind].macs / dense.macs,
            params=costs[kind].params / dense.params,
            settled=-1.0,
            seconds=latency.median_ms / 1000,
            torch=torch.__version__,
            settings=json.dumps(dataclasses.asdict(latency)),
        )
        for kind, latency in found.items()
    ]


def _drop_branches(gated: GatedModule, target: float) -> None:
    """Remove branches, evenly over the depth: as many as come nearest to a share of the MACs."""
    names = [group.name for group in gated.groups if group.kind == "branch"]
    best: tuple[float, list[str]] = (2.0, [])
    for count in range(len(names) + 1):
        gone = {names[int(k * len(names) / count)] for k in range(count)} if count else set()
        gated.set_keep({name: torch.tensor([name not in gone]) for name in names})
        gap = abs(gated.cost().macs / gated.dense_cost.macs - target)
        best = min(best, (gap, sorted(gone)))
    gated.set_keep({name: torch.tensor([name not in best[1]]) for name in names})
