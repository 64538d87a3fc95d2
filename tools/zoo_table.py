"""Measure every model of the zoo in tests/model_zoo.py and write the table in docs/conv_models.md.

Run from the root of a checkout::

    python tools/zoo_table.py [--models resnet18,resnet50] [--markdown docs/conv_models.md]

One process per model and one at a time, so that the large ones have the memory for themselves.
Exits with 1 when a model fails, its compact form is not equal, or it keeps more than its row in the
zoo or torch-pruning's number allows.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 1e-9
HEADERS = (
    "model",
    "parameters",
    "groups",
    "prunable share",
    "kept at half",
    "torch-pruning",
    "MACs at half",
    "relative error",
    "seconds",
)


def _zoo() -> ModuleType:
    """Import tests/model_zoo.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("model_zoo", ROOT / "tests" / "model_zoo.py")
    if spec is None or spec.loader is None:
        raise ImportError("tests/model_zoo.py: run this script from a checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _measure(name: str) -> dict[str, Any]:
    import torch

    from fxprune.api import auto_gate
    from fxprune.verify import verify

    torch.set_num_threads(1)
    zoo = _zoo()
    model = zoo.build(name)
    dense = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    gated = auto_gate(model)
    seconds = time.perf_counter() - start
    share = zoo.prunable_share(model, gated)
    del model
    macs = gated.cost().macs
    gated.set_keep(zoo.half_masks(gated))
    start = time.perf_counter()
    compact = gated.compact()
    seconds += time.perf_counter() - start
    found = verify(gated.eval(), compact.eval(), zoo.example(name), rtol=TOLERANCE)
    return {
        "parameters": dense,
        "groups": len(gated.groups),
        "share": share,
        "half": sum(p.numel() for p in compact.parameters()) / dense,
        "macs": gated.cost().macs / macs,
        "error": found.max_rel_error,
        "seconds": seconds,
        "reasons": sorted({axis.reason for axis in gated.frozen}),
    }


def _in_own_process(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1] if lines else f"exit status {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _row(name: str, result: dict[str, Any], zoo: ModuleType) -> tuple[str, ...]:
    if "failed" in result:
        return (name, f"FAILED: {result['failed']}", *[""] * (len(HEADERS) - 2))
    reference = zoo.TORCH_PRUNING.get(name)
    return (
        name,
        f"{result['parameters']:,}",
        str(result["groups"]),
        f"{math.floor(result['share'] * 1e5) / 1e5:.5f}",  # never 1 for what is not all
        f"{result['half']:.4f}",
        "" if reference is None else f"{reference:.3f}",
        f"{result['macs']:.4f}",
        f"{result['error']:.0e}",
        f"{result['seconds']:.2f}",
    )


def _is_good(name: str, result: dict[str, Any], zoo: ModuleType) -> bool:
    if "failed" in result:
        return False
    entry = zoo.MODELS[name]
    # The reference numbers have three digits.
    allowed = min(entry.half, zoo.TORCH_PRUNING.get(name, 1.0) + 0.0005)
    return bool(result["share"] >= entry.share and result["half"] <= allowed)


def _page(results: dict[str, dict[str, Any]], zoo: ModuleType, command: str) -> str:
    import torch
    import torchvision

    good = sum(_is_good(name, result, zoo) for name, result in results.items())
    reasons = sorted({r for result in results.values() for r in result.get("reasons", ())})
    rows = [_row(name, result, zoo) for name, result in results.items()]
    aligned = ("left", *["right"] * (len(HEADERS) - 1))
    return "\n".join(
        (
            "# torchvision's convolutional models",
            "",
            f"Written by `{command}` on {datetime.date.today()}, with Python "
            f"{platform.python_version()}, torch {torch.__version__} and torchvision "
            f"{torchvision.__version__}.",
            f"{good} of {len(results)} models gated without an argument, cut in half and equal.",
            "",
            "* *prunable share*: share of the parameters with an axis that has a group "
            "(rounded down).",
            "* *kept at half*: share of the parameters left when half of every group is removed "
            "(rounded down); *MACs at half* likewise.",
            "* *torch-pruning*: the same for torch-pruning 1.6.1 at ratio 0.5 with the classifier "
            "ignored, where it was measured.",
            "* *relative error*: largest difference between the outputs of the gated and the "
            "compact model in float64, relative to the largest output; "
            f"{TOLERANCE:.0e} is allowed.",
            "* *seconds*: `auto_gate` and `compact` together, one thread.",
            "",
            tabulate(rows, HEADERS, tablefmt="github", colalign=aligned, disable_numparse=True),
            "",
            "What is frozen in any of them, and why: "
            + "; ".join(f'"{reason}"' for reason in reasons)
            + ".",
            "",
        )
    )


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description="Measure the models of tests/model_zoo.py.")
    parser.add_argument("--models", help="names, separated by commas; all by default")
    parser.add_argument("--markdown", type=Path, help="file to write the table to")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measure(arguments.one)))
        return 0
    zoo = _zoo()
    names = arguments.models.split(",") if arguments.models else list(zoo.MODELS)
    results = {}
    for name in names:
        results[name] = _in_own_process(name)
        print("  ".join(_row(name, results[name], zoo)), flush=True)
    if arguments.markdown:
        command = " ".join(("python", "tools/zoo_table.py", *sys.argv[1:]))
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(_page(results, zoo, command), encoding="utf-8")
    return 0 if all(_is_good(name, result, zoo) for name, result in results.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
