"""Time the analysis and the cut: fxprune's auto_gate + compact against torch-pruning's graph build
+ prune, and how fxprune's time grows with depth.

Run on an otherwise idle machine, with the ``bench`` extra installed::

    python tools/bench/analysis.py [--models resnet18,resnet50] [--markdown docs/bench_analysis.md]

One process per model and tool, each repeating the work three times on fresh models; the median
counts. Both tools remove half of every group's channels, the classifier aside. The process exits
with 1 when the sum over all models is above torch-pruning's, or one model takes more than twice as
long as torch-pruning where that takes over half a second.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate

MODELS = (
    "resnet18 resnet50 resnet152 mobilenet_v2 mobilenet_v3_large mnasnet1_0 densenet121 "
    "vgg11_bn alexnet squeezenet1_0 efficientnet_b0 "
    "regnet_y_400mf convnext_tiny inception_v3 r3d_18 deeplabv3_resnet50"
).split()
SHAPES = {"r3d_18": (1, 3, 16, 112, 112), "inception_v3": (1, 3, 299, 299)}
DEPTHS = (50, 100, 200, 400)
REPEATS = 3


def _model(name: str) -> Any:
    import torchvision

    extra: dict[str, Any] = {"weights_backbone": None} if "deeplab" in name else {}
    if name == "inception_v3":
        extra = {"init_weights": False}
    return torchvision.models.get_model(name, weights=None, **extra).eval()


def _residual_net(blocks: int) -> Any:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1),
                nn.BatchNorm2d(32),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.body(x)
            return x + y

    return nn.Sequential(
        nn.Conv2d(3, 32, 3), *(Block() for _ in range(blocks)), nn.Conv2d(32, 8, 1)
    ).eval()


def _time_fxprune(model: Any, example: Any) -> float:
    import fxprune

    start = time.perf_counter()
    gated = fxprune.auto_gate(model, example)
    keep = {name: mask.clone() for name, mask in gated.keep.items()}
    for mask in keep.values():
        mask[len(mask) - len(mask) // 2 :] = False
    gated.set_keep(keep)
    gated.compact()
    return time.perf_counter() - start


def _time_torch_pruning(model: Any, example: Any) -> float:
    import torch_pruning

    classifiers = {1000, 21, 400}
    heads = [m for m in model.modules() if getattr(m, "out_features", None) in classifiers]
    heads += [m for m in model.modules() if getattr(m, "out_channels", None) in {1000, 21}]
    start = time.perf_counter()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        example,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=heads,
    )
    pruner.step()
    return time.perf_counter() - start


def _worker(tool: str, name: str) -> None:
    """Print the median seconds of one tool on one model, as JSON."""
    import warnings

    import torch

    warnings.simplefilter("ignore")
    example = torch.randn(SHAPES.get(name, (1, 3, 224, 224)))
    seconds = []
    for _ in range(REPEATS):
        if name.isdigit():
            model, example = _residual_net(int(name)), torch.randn(1, 3, 32, 32)
        else:
            model = _model(name)
        seconds.append(
            (_time_fxprune if tool == "fxprune" else _time_torch_pruning)(model, example)
        )
    print(json.dumps(statistics.median(seconds)))


def _measure(tool: str, name: str) -> float | None:
    command = [sys.executable, __file__, "--worker", tool, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{tool} failed on {name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _compare(models: list[str]) -> tuple[list[list[Any]], bool]:
    rows: list[list[Any]] = []
    totals = {"fxprune": 0.0, "torch-pruning": 0.0}
    good = True
    for name in models:
        ours, theirs = _measure("fxprune", name), _measure("torch-pruning", name)
        ratio = None if ours is None or theirs is None else ours / theirs
        if ours is None or (
            ratio is not None and theirs is not None and theirs > 0.5 and ratio > 2
        ):
            good = False
        if ours is not None and theirs is not None:
            totals["fxprune"] += ours
            totals["torch-pruning"] += theirs
        rows.append([name, ours, theirs, ratio])
        print(f"{name}: {ours} s, torch-pruning {theirs} s", file=sys.stderr, flush=True)
    rows.append(["sum", *totals.values(), totals["fxprune"] / max(totals["torch-pruning"], 1e-9)])
    return rows, good and totals["fxprune"] <= totals["torch-pruning"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--worker", nargs=2, metavar=("TOOL", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _worker(*options.worker)
        return 0
    started = time.perf_counter()
    rows, good = _compare(options.models.split(","))
    depth = [(n, _measure("fxprune", str(n))) for n in DEPTHS]
    head = ["model", "fxprune, s", "torch-pruning 1.6.1, s", "ratio"]
    grown = [[n, s, None if s is None else 1000 * s / n] for n, s in depth]
    growth_head = ["residual blocks", "fxprune, s", "ms per block"]
    verdict = "holds" if good else "DOES NOT HOLD"
    text = "\n".join(
        [
            "# Time of analysis and cut",
            "",
            f"{datetime.date.today()}, {platform.processor() or platform.machine()}, python "
            f"{platform.python_version()}; "
            f"`python {' '.join(sys.argv)}` took {time.perf_counter() - started:.0f} s. Median "
            f"of {REPEATS}, one process per model and tool.",
            "",
            tabulate(rows, head, "github", floatfmt=".2f"),
            "",
            f"Sum at most torch-pruning's, no model above twice its time where that is over 0.5 "
            f"s: {verdict}.",
            "",
            tabulate(grown, growth_head, "github", floatfmt=".2f"),
            "",
        ]
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
