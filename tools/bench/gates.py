"""Time what gates cost in a forward and in a training step.

It compares the original, the gated model with open gates, and one with half of them closed.

Run on an otherwise idle machine::

    python tools/bench/gates.py [--markdown docs/bench_gates.md]

The three are interleaved in one process; medians, and ratios to the original.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from tabulate import tabulate
from torch import Tensor, nn

import fxprune

MODELS = ("resnet18", "mobilenet_v2", "convnext_tiny")
ROUNDS = 15


def _forward(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def _step(model: nn.Module, x: Tensor) -> None:
    model.zero_grad()
    F.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long)).backward()  # type: ignore[no-untyped-call]


def _seconds(run: Callable[[nn.Module, Tensor], None], model: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    run(model, x)
    return time.perf_counter() - start


def _rows(name: str) -> list[list[object]]:
    model = torchvision.models.get_model(name, weights=None)
    x = torch.randn(16, 3, 64, 64)
    opened, half = fxprune.auto_gate(model, x), fxprune.auto_gate(model, x)
    half.set_keep({group.name: torch.arange(group.size) % 2 == 0 for group in half.groups})
    versions = {"original": model, "open gates": opened, "half closed": half}
    rows: list[list[object]] = []
    for what, run in (("forward", _forward), ("training step", _step)):
        times: dict[str, list[float]] = {version: [] for version in versions}
        for round_number in range(ROUNDS + 2):
            for version, net in versions.items():
                net.train(what != "forward")
                taken = _seconds(run, net, x)
                if round_number >= 2:
                    times[version].append(taken)
        medians = {version: statistics.median(values) for version, values in times.items()}
        base = medians["original"]
        rows.append(
            [name, what, 1000 * base]
            + [medians[version] / base for version in ("open gates", "half closed")]
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    rows = [row for name in MODELS for row in _rows(name)]
    head = ["model", "what", "original, ms", "open gates, ratio", "half closed, ratio"]
    text = "\n".join(
        [
            "# What gates cost",
            "",
            f"{datetime.date.today()}, torch {torch.__version__}, {torch.get_num_threads()} "
            f"threads, batch 16 at "
            f"64x64, median of {ROUNDS} interleaved rounds. `python {' '.join(sys.argv)}`",
            "",
            tabulate(rows, head, "github", floatfmt=".3f"),
            "",
        ]
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
