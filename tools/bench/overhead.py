"""What Auto-Train-Once adds to a training step.

For each network, a whole run of plain training and whole runs with Auto-Train-Once, on the same
random batches, step by step in turn, so that they share the machine's mood. A run with the
controller passes through all its phases; the figure is its mean time per step over that of plain
training, controller steps counted in, and the median of several such runs. Command::

    python tools/bench/overhead.py --markdown docs/bench_overhead.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor, nn
from torchvision.models import get_model
from tqdm import tqdm

import fxprune
from fxprune.controllers import AutoTrainOnce, Schedule

NETS = ("resnet18", "mobilenet_v2")
BATCH = 64
SIZE = 32
CLASSES = 10
PAPER_EVERY = 20
DEMO_EVERY = 1


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of the rounds of one net, and their range."""

    net: str
    every: int
    plain_ms: float
    median: float
    least: float
    most: float


class Trainer:
    """One model in training, with or without a controller."""

    def __init__(self, net: str, steps: int, every: int | None) -> None:
        torch.manual_seed(0)
        model: nn.Module = get_model(net, num_classes=CLASSES)
        self.controller: AutoTrainOnce | None = None
        if every is not None:
            model = fxprune.auto_gate(model, torch.zeros(1, 3, SIZE, SIZE))
        self.model = model.train()
        self.optimizer = torch.optim.SGD(
            model.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        if isinstance(model, fxprune.GatedModule) and every is not None:
            self.controller = AutoTrainOnce(
                model, self.optimizer, steps=steps, macs=0.5, every=every, schedule=Schedule()
            )

    def step(self, x: Tensor, y: Tensor) -> float:
        """Train one step and return its seconds."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.controller is not None:
            self.controller.step(lambda: F.cross_entropy(self.model(x), y))
        return time.perf_counter() - started


def measure(net: str, every: int, steps: int, rounds: int) -> Ratio:
    """Compare plain training with training under a controller that steps at this rate."""
    ratios, plain_ms = [], []
    for _ in range(rounds):
        trainers = [Trainer(net, steps, None), Trainer(net, steps, every)]
        generator = torch.Generator().manual_seed(0)
        seconds = [0.0, 0.0]
        for number in tqdm(range(steps), f"{net}, every {every}", leave=False):
            x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
            y = torch.randint(CLASSES, (BATCH,), generator=generator)
            order: tuple[int, int] = (0, 1) if number % 2 else (1, 0)
            for which in order:
                seconds[which] += trainers[which].step(x, y)
        ratios.append(seconds[1] / seconds[0])
        plain_ms.append(1000 * seconds[0] / steps)
    return Ratio(
        net, every, statistics.median(plain_ms), statistics.median(ratios), min(ratios), max(ratios)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100, help="of a whole run (100)")
    parser.add_argument("--rounds", type=int, default=3, help="runs per figure (3)")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    found = [
        measure(net, every, args.steps, args.rounds)
        for net in NETS
        for every in (PAPER_EVERY, DEMO_EVERY)
    ]
    rows = [(r.net, r.every, r.plain_ms, r.median, f"{r.least:.3f} to {r.most:.3f}") for r in found]
    headers = ("model", "controller step every", "plain step, ms", "ratio, median", "range")
    style: Callable[[str], str] = lambda name: tabulate(  # noqa: E731
        rows, headers, tablefmt=name, floatfmt=".3f"
    )
    print(style("simple"))
    if args.markdown:
        args.markdown.write_text(
            "# What Auto-Train-Once adds to a training step\n\n"
            f"{date.today()}, torch {torch.__version__}, {torch.get_num_threads()} threads, batch "
            f"{BATCH} at {SIZE}x{SIZE}, whole runs of {args.steps} steps with the paper's phases, "
            f"{args.rounds} rounds, plain and pruned steps in turn; controller steps are counted "
            "in. `python tools/bench/overhead.py --markdown docs/bench_overhead.md`\n\n"
            f"{style('github')}\n"
        )


if __name__ == "__main__":
    main()
