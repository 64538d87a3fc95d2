"""What fxprune makes of one model, stage by stage: build, gate, equal, onnx."""

from __future__ import annotations

import gc
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coverage_.doubled import in_double
from coverage_.processes import Stage, measured_peak, one_line
from coverage_.subjects import Subject, randomise
from fxprune.api import auto_gate
from fxprune.errors import ExportError, FxpruneError, VerificationError
from fxprune.explain import explain
from fxprune.export import OnnxExport, export_onnx
from fxprune.gated import GatedModule
from fxprune.handovers import handed_over, region_paths
from fxprune.inputs import flatten_outputs, normalize_inputs
from fxprune.onnx_trace import is_settled
from fxprune.tolerances import RTOL
from fxprune.verify import verify

__all__ = ["Gating"]

_SEEDS = 2
_LARGE = 150_000_000  # parameters from which one mask must do: in float64 each takes gigabytes
_NOTICED = 1e-6  # masks that change the output by less prove nothing
_REASONS = 2
_FIXED = "fixes its batch size"
_SHAKY = 0.3  # part of the tolerance that torch may use up by itself before a file says nothing


class Gating:
    """The stages for one model; every stage uses what those before it left.

    Parameters
    ----------
    subject : Subject
    onnx : bool
        Whether to write ONNX files.
    """

    def __init__(self, subject: Subject, *, onnx: bool) -> None:
        self._subject = subject
        self._onnx = onnx
        self._inputs: tuple[Any, ...] = ()
        self._model = nn.Module()
        self._half = nn.Module()
        self._doubled = ExitStack()
        # ONNX files are of float32; where none is written, one analysis in float64 does for all
        self._dtype = torch.float32 if onnx else torch.float64
        self._gated: GatedModule | None = None

    def stages(self) -> Iterator[Stage]:
        """Yield the name of each stage and the function that runs it."""
        yield "build", self._build
        yield "gate", self._gate
        yield "equal", self._equal
        if self._onnx:
            yield "dense onnx", self._dense_onnx
            yield "compact onnx", self._compact_onnx

    def _build(self) -> Mapping[str, Any]:
        self._model = self._subject.build().to(self._dtype)
        self._inputs = self._subject.inputs(self._dtype)
        if self._dtype is torch.float64:
            self._doubled.enter_context(in_double(self._model, self._inputs))
        randomise(self._model, self._inputs)
        tensors = [*self._model.parameters(), *self._model.buffers()]
        return {
            "params": sum(parameter.numel() for parameter in self._model.parameters()),
            "gib": round(sum(t.numel() * t.element_size() for t in tensors) / 2**30, 3),
            "shapes": self._subject.shapes,
        }

    def _gate(self) -> Mapping[str, Any]:
        """Time the analysis, and cut half of every group."""
        if self._onnx:
            return self._cut_half()
        with in_double(self._model, self._inputs):
            return self._cut_half()

    def _cut_half(self) -> Mapping[str, Any]:
        gated: list[GatedModule] = []
        wall, cpu = time.perf_counter(), time.process_time()
        before, peak = measured_peak(lambda: gated.append(auto_gate(self._model, self._inputs)))
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        found = explain(gated[0])
        dense = sum(parameter.numel() for parameter in self._model.parameters())
        gated[0].set_keep(_half_masks(gated[0]))
        macs = gated[0].cost().macs
        self._half = gated[0].compact()
        self._gated = None if self._onnx else gated[0]
        kept = sum(parameter.numel() for parameter in self._half.parameters())
        return {
            "captured": _captured(gated[0]),
            "groups": len(found.groups),
            "units": gated[0].plan.n_units,
            "prunable_params": found.prunable_params,
            "prunable_macs": found.prunable_macs,
            "half_params": kept / dense,
            "half_macs": macs / found.macs if found.macs else 1.0,
            "rest": _rest(gated[0]),
            "seconds": {key: round(value, 2) for key, value in seconds.items()},
            "added_gib": round(peak - before, 3),
        }

    def _equal(self) -> Mapping[str, Any]:
        """Compare original, gated and compact in float64, with random masks."""
        try:
            with in_double(self._model.double(), self._subject.inputs(torch.float64)):
                return self._compare()
        finally:
            self._model.to(self._dtype)  # not inside: there, float32 means float64

    def _compare(self) -> Mapping[str, Any]:
        inputs = self._subject.inputs(torch.float64)
        gated = self._gated if self._gated is not None else auto_gate(self._model, inputs)
        gated.set_keep({group.name: torch.ones(group.size).bool() for group in gated.groups})
        rtol = RTOL[torch.float64]
        open_error = verify(self._model, gated, inputs, rtol=rtol).max_rel_error
        whole = _outputs(self._model, inputs, gated)
        size = sum(parameter.numel() for parameter in gated.parameters())
        errors = []
        for seed in range(_SEEDS if size < _LARGE else 1):
            gated.set_keep(_random_masks(gated, seed))
            compact = gated.compact()
            errors.append(verify(gated, compact, inputs, rtol=rtol).max_rel_error)
            _check_change(whole, _outputs(compact, inputs, gated), gated)
            del compact
            gc.collect()  # graphs are cycles, and some of these are large
        return {"open": open_error, "masked": max(errors), "masks": len(errors)}

    def _dense_onnx(self) -> Mapping[str, Any]:
        return self._export(self._model)

    def _compact_onnx(self) -> Mapping[str, Any]:
        return self._export(self._half)

    def _export(self, model: nn.Module) -> Mapping[str, Any]:
        """Write and compare a file; what torch itself cannot write is an answer, not a failure.

        A file of one batch size is written where torch.export itself fixes it.
        """
        started = time.perf_counter()
        open_batch = not self._subject.listed
        try:
            try:
                done = self._write(model, open_batch)
            except ExportError as error:
                if not (open_batch and _FIXED in error.what):
                    raise
                open_batch = False
                done = self._write(model, open_batch)
        except FxpruneError as error:
            answer = "no"
            if _is_wrong(error):
                answer = "rounding" if self._rounds(model) else "differs"
            return {"answer": answer, "why": one_line(error)}
        seconds = round(time.perf_counter() - started, 1)
        answer = "yes" if open_batch or self._subject.listed else "one batch size"
        return {"answer": answer, "error": done.max_rel_error, "seconds": seconds}

    def _write(self, model: nn.Module, open_batch: bool) -> OnnxExport:
        with tempfile.TemporaryDirectory() as folder:
            return export_onnx(
                model,
                Path(folder) / "model.onnx",
                self._inputs,
                dynamic_batch=open_batch,
                traced=self._subject.listed,
            )

    def _rounds(self, model: nn.Module) -> bool:
        """Return whether torch's own float32 is so far from float64 that files cannot agree."""
        if self._subject.listed:
            return False  # what detectors return is ranked: small errors change its order
        with torch.no_grad():
            limit = _SHAKY * RTOL[torch.float32]
            return not is_settled(model, normalize_inputs(self._inputs), limit)


def _is_wrong(error: BaseException | None) -> bool:
    """Return whether an export failed because the file computes something else."""
    return error is not None and (
        isinstance(error, VerificationError) or _is_wrong(error.__cause__)
    )


def _captured(gated: GatedModule) -> str:
    """Tell how a model was captured."""
    return gated.settings.captured or "regions"


def _rest(gated: GatedModule) -> list[tuple[float, str]]:
    """Return why parameters without a prunable axis have none: share of all, and the reason."""
    prunable = {member.fqn for group in gated.groups for member in group.members}
    reasons: dict[str, str] = {}
    for axis in gated.frozen:
        reasons.setdefault(axis.member.fqn, re.sub(r" \(.*?:\d+\)", "", axis.reason))
    sizes = {name: parameter.numel() for name, parameter in gated.named_parameters()}
    lost: Counter[str] = Counter()
    for name, size in sizes.items():
        if name not in prunable:
            lost[re.sub(r"\d+", "*", reasons.get(name, "it has no axis that is a channel"))] += size
    total = sum(sizes.values()) or 1
    return [(size / total, reason) for reason, size in lost.most_common(_REASONS)]


def _half_masks(gated: GatedModule) -> dict[str, Tensor]:
    """Return masks that remove half of every group, rounded down as torch-pruning does."""
    return {g.name: torch.arange(g.size) < g.size - g.size // 2 for g in gated.groups}


def _random_masks(gated: GatedModule, seed: int) -> dict[str, Tensor]:
    """Return masks: seed 0 keeps about half of every group, others from one unit to all."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in gated.groups:
        order = torch.randperm(group.size, generator=generator)
        drawn = int(torch.randint(1, group.size + 1, (), generator=generator))
        masks[group.name] = order < (max(1, group.size // 2) if seed == 0 else drawn)
    return masks


def _outputs(model: nn.Module, inputs: tuple[Any, ...], gated: GatedModule) -> list[Tensor]:
    """Return what a model returns, and what its regions do: a detector may find nothing at all."""
    with torch.no_grad(), handed_over(model, region_paths(gated)) as tape:
        returned = flatten_outputs(model(*inputs))
    return [tensor for _, tensor in (*tape, *returned)]


def _check_change(whole: list[Tensor], cut: list[Tensor], gated: GatedModule) -> None:
    """Refuse a comparison that masks do not reach: dead units would agree with anything."""
    moved = [
        a.shape != b.shape or float((a - b).abs().max()) > _NOTICED * float(a.abs().max())
        for a, b in zip(whole, cut, strict=False)
        if a.numel()
    ]
    if gated.groups and len(whole) == len(cut) and not any(moved):
        raise VerificationError("Masks do not change the output, so nothing is proved.")
