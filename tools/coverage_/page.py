"""The rows as a page: one line per model, what failed by name, and the limits they ran under."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision

from coverage_.rows import PEER, Key, Row
from fxprune import __version__
from fxprune._tables import count, percent, table

__all__ = ["page"]

_HEADERS = (
    "model",
    "parameters",
    "captured by",
    "groups",
    "prunable params",
    "prunable MACs",
    "kept at half",
    "error",
    "ONNX dense",
    "ONNX compact",
    "seconds",
    "memory",
    f"{PEER}: cut",
    "runs",
    "kept at half",
    "seconds",
)
_AGREE = ("yes", "one batch size")
_ENOUGH = 0.8  # share of the parameters that the page counts as prunable enough
_LEGEND = """\
* *prunable params, MACs*: share of the model's parameters, and of its multiply-accumulates at the
  inputs tried, with an axis that has a group; *kept at half*: share of the parameters left when
  half of every group is removed.
* *error*: in float64, the largest difference between gated and compact model for random masks, and
  between the original and the gated model with all gates open, relative to the largest output;
  1e-9 is allowed. Weights, biases, scales of norms and running statistics are random.
* *ONNX*: the file was written, passed onnx's checker and agrees with torch in onnxruntime, batch
  size open (detectors, which take lists: as many images as in the example); *one batch size* where
  torch.onnx itself fixes it; *no* where it writes none; *differs* where onnxruntime disagrees;
  *rounding* where torch's own float32 is too far from its float64 for a comparison.
* *seconds*: CPU time of `auto_gate` on one thread; *memory*: what the process grew by at the peak
  of `auto_gate`, its copy of the model included, as a multiple of the model's own size.
* *torch-pruning*: its graph built and half of the channels cut (magnitude, output layers ignored);
  *runs* says whether the cut model runs with finite outputs of the old shape, since it compares
  nothing; *seconds*: CPU time of `build_dependency`."""


def page(names: Sequence[str], rows: Mapping[Key, Row], command: str, limits: str) -> str:
    """Return the page in Markdown, for these models in this order."""
    mine = [rows[name, "fxprune"] for name in names if (name, "fxprune") in rows]
    peers = [rows[name, PEER] for name in names if (name, PEER) in rows]
    days = sorted({row.day for row in (*mine, *peers)})
    good = [row for row in mine if "equal" in row.stages]
    parts = [
        "# Every model: gated, compacted, compared",
        f"Written by `{command}`; rows measured {days[0]} to {days[-1]} with fxprune "
        f"{__version__}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}{_timm_version(names)}. {limits}"
        if days
        else f"Written by `{command}`; nothing measured yet.",
        f"**fxprune: {len(good)} of {len(names)}** gated, compacted and equal{_onnx_line(good)}; "
        f"in {sum(row.stages['gate']['prunable_params'] >= _ENOUGH for row in good)} of them at "
        f"least {_ENOUGH:.0%} of the parameters are prunable.",
    ]
    if peers:
        cut = [row for row in peers if "cut" in row.stages]
        runs = [row for row in cut if not row.failed]
        parts.append(
            f"**torch-pruning: {len(cut)} of {len(peers)}** cut, {len(runs)} of these run."
        )
    lines = [
        _line(name, rows) for name in names if (name, "fxprune") in rows or (name, PEER) in rows
    ]
    parts.append(table(lines, _HEADERS, "markdown"))
    parts += [_LEGEND, "## What is not prunable, and why", _rest_table(good), "## Failures"]
    parts += [_failures(tool, tried) for tool, tried in (("fxprune", mine), (PEER, peers)) if tried]
    missing = [name for name in names if (name, "fxprune") not in rows]
    if missing:
        parts.append(f"Not tried yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def _onnx_line(rows: Sequence[Row]) -> str:
    if not any("dense onnx" in row.stages for row in rows):
        return ""
    dense = [row for row in rows if _answer(row.stages, "dense onnx") in (*_AGREE, "rounding")]
    both = [row for row in dense if _answer(row.stages, "compact onnx") in _AGREE]
    return (
        f"; of {len(dense)} whose dense form exports to ONNX, {len(both)} export compact and agree"
    )


def _timm_version(names: Sequence[str]) -> str:
    if not any(name.startswith("timm:") for name in names):
        return ""
    from timm import __version__ as version

    return f", timm {version}"


def _line(name: str, rows: Mapping[Key, Row]) -> tuple[object, ...]:
    row, peer = rows.get((name, "fxprune")), rows.get((name, PEER))
    return (name, *(_ours(row) if row else ("",) * 11), *(_theirs(peer) if peer else ("",) * 4))


def _ours(row: Row) -> tuple[object, ...]:
    stages = row.stages
    built, gate, equal = (stages.get(stage, {}) for stage in ("build", "gate", "equal"))
    failed = f"FAILED: {row.failed}" if row.failed else ""
    params = count(built["params"]) if built else ""
    if not gate:
        return (params, failed, *("",) * 9)
    return (
        params,
        gate["captured"],
        gate["groups"],
        percent(gate["prunable_params"]),
        percent(gate["prunable_macs"]),
        percent(gate["half_params"]),
        f"{max(equal['open'], equal['masked']):.0e}" if equal else failed,
        _answer(stages, "dense onnx") or (failed if row.failed == "dense onnx" else ""),
        _answer(stages, "compact onnx") or (failed if row.failed == "compact onnx" else ""),
        f"{gate['seconds']['cpu']:.1f}",
        f"{gate['added_gib'] / built['gib']:.1f}x" if built["gib"] >= 0.1 else "small",
    )


def _theirs(row: Row) -> tuple[object, ...]:
    stages = row.stages
    graph, cut = stages.get("graph"), stages.get("cut")
    return (
        "yes" if cut else "no",
        "yes" if not row.failed else "no" if cut else "",
        percent(cut["half_params"]) if cut else "",
        f"{graph['seconds']['cpu']:.1f}" if graph else "",
    )


def _answer(stages: Mapping[str, Any], stage: str) -> str:
    return str(stages.get(stage, {}).get("answer", ""))


def _rest_table(rows: Sequence[Row]) -> str:
    lines = [
        (row.model, "; ".join(f"{percent(share)}: {reason}" for share, reason in rest))
        for row in rows
        if (rest := [entry for entry in row.stages["gate"]["rest"] if entry[0] >= 0.001])
    ]
    if not lines:
        return "Nothing of 0.1 % of a model's parameters or more."
    return table(lines, ("model", "share of the parameters, and why"), "markdown")


def _failures(tool: str, rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row.failed]
    if not failed:
        return f"{tool}: none of {len(rows)}."
    lines = [(row.model, row.failed, row.reason) for row in failed]
    return f"{tool}: {len(failed)} of {len(rows)}.\n\n" + table(
        lines, ("model", "stage", "reason"), "markdown"
    )
