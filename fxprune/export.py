"""ONNX files that are right when they appear.

A file gets its name only after it was checked by onnx and gave in onnxruntime what the model gives
in torch. Until then it lives in a temporary directory beside the target, so a failure leaves
nothing behind and an older file of that name as it was.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from fxprune import onnx_write
from fxprune._compat import no_attention_fastpath
from fxprune.errors import (
    ConfigError,
    ExportError,
    FxpruneError,
    InputError,
    LoadError,
    VerificationError,
)
from fxprune.handovers import region_paths
from fxprune.inputs import (
    ExampleInputs,
    Inputs,
    batch_size,
    check_count,
    fit_inputs,
    flatten_outputs,
    map_tensors,
    normalize_inputs,
    with_batch,
)
from fxprune.modes import in_mode
from fxprune.onnx_trace import (
    TRACED_RTOL,
    TracedExportWarning,
    decides_by_values,
    draws,
    is_settled,
)
from fxprune.onnx_write import carries_batch, named_tensors
from fxprune.runtime import OnnxModel, first_lines, run_onnx
from fxprune.verify import Verification, compare_outputs, cuda_devices, full_float32

__all__ = ["OnnxExport", "export_onnx", "run_onnx"]


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """What was written and how well it agrees with the model.

    Attributes
    ----------
    path : Path
        The file. A model of 1.9 GB or more keeps its weights beside it, in a file of the same name
        with ``.data`` at the end.
    opset : int
        Version of the ONNX operator set.
    bytes : int
        Size of what was written, weights included, in bytes.
    max_abs_error : float
        Largest difference between onnxruntime and torch, in the output's unit.
    max_rel_error : float
        Largest over the outputs of: largest difference divided by the output's largest magnitude.
        No unit.
    batches : tuple of int
        Batch sizes compared; empty when no input has a batch dimension.
    traced : bool
        Whether the file follows one run of the model, which decides by values, see `export_onnx`.
    """

    path: Path
    opset: int
    bytes: int
    max_abs_error: float
    max_rel_error: float
    batches: tuple[int, ...]
    traced: bool = False


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: ExampleInputs,
    *,
    dynamic_batch: bool = True,
    opset: int | None = None,
    traced: bool | None = None,
) -> OnnxExport:
    """Write a model as an ONNX file that is checked and agrees with torch.

    Parameters
    ----------
    model : nn.Module
        The model; it is exported in eval mode, and each of its modules gets its mode back.
    path : str or PathLike
        The file to write; its directory must exist. An older file is replaced once all checks have
        passed.
    example_inputs : Tensor, tuple, list or dict
        Inputs the model runs on; moved to the model's device and floating dtype.
    dynamic_batch : bool
        Leave the leading size of every input that carries the batch open. The file is then compared
        at two batch sizes, that of the example and 1 (5 if that of the example is 1).
    opset : int, optional
        Version of the ONNX operator set; by default the one torch recommends.
    traced : bool, optional
        Follow one run of the model rather than its code, which must not decide by values: by
        default where the model was captured by regions.

    Returns
    -------
    OnnxExport
        Path, size and errors.

    Raises
    ------
    ExportError
        When the file cannot be written, torch cannot express the model in ONNX, the check fails, or
        onnxruntime computes something else than torch. No new file is left behind, and an older one
        is as it was.
    InputError
        When the model does not run on the inputs, or no input has a batch dimension to leave open.
    ConfigError
        When an argument has the wrong type or range.

    Warns
    -----
    TracedExportWarning
        When the file follows one run of the model: what its Python code decided in that run is
        fixed. torchvision's detectors are made for that and then take any image of the size. Such a
        file is compared on the example's values in other orders as well; inputs on which the model
        returns something else in double precision (boxes that tie) prove nothing and are passed
        over.

    Notes
    -----
    Inputs are named after the parameters of `forward`, outputs after the keys or fields they are
    returned under. Numbers among the outputs are not written. Source file names and lines, which
    torch writes into every node, are taken out.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "The 'model' argument of export_onnx must be a torch.nn.Module.",
            seen=type(model).__name__,
        )
    if opset is not None:
        check_count("opset", opset)
    if traced is None:
        traced = bool(region_paths(model))
    inputs = fit_inputs(model, normalize_inputs(example_inputs))
    batch = batch_size(inputs)
    batches: tuple[int, ...] = () if batch is None else (batch,)
    if dynamic_batch:
        if not batch:
            raise InputError(
                "No example input has a batch dimension that could be left open.",
                seen=_shapes(inputs),
                hint="pass tensors of shape (N, ...) with N >= 1, or dynamic_batch=False",
            )
        batches = (batch, 5 if batch == 1 else 1)
    target = _target(path)
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training=False))
        stack.enter_context(no_attention_fastpath())
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=cuda_devices(model)))
        names = [name for name, _ in _reference(model, inputs)]
        try:
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=".fxprune-", dir=target.parent)
            )
            draft = Path(scratch) / target.name
            written = onnx_write.write_onnx(
                model,
                draft,
                inputs,
                names,
                dynamic_batch=dynamic_batch,
                opset=opset,
                traced=traced,
            )
            size = sum(file.stat().st_size for file in draft.parent.iterdir())
            onnx.checker.check_model(draft, full_check=size < onnx_write.SINGLE_FILE_BYTES)
            compare = _compare_traced if traced else _compare
            found = compare(model, draft, inputs, batches, dynamic_batch=dynamic_batch)
            # The weights first: the file that refers to them must never stand there without them.
            for file in sorted(draft.parent.iterdir(), key=lambda file: file == draft):
                file.replace(target.with_name(file.name))
        except Exception as error:
            raise _export_error(error, model, target) from error
    if traced:
        warnings.warn(
            f"The ONNX file of {type(model).__name__} follows one run of it: what its Python code "
            "decided in that run is fixed.",
            TracedExportWarning,
            stacklevel=2,
        )
    return OnnxExport(
        path=target,
        opset=written,
        bytes=size,
        max_abs_error=max(one.max_abs_error for one in found),
        max_rel_error=max(one.max_rel_error for one in found),
        batches=batches,
        traced=traced,
    )


def _compare(
    model: nn.Module,
    draft: Path,
    inputs: Inputs,
    batches: Sequence[int],
    *,
    dynamic_batch: bool,
    rtol: float | None = None,
) -> list[Verification]:
    """Compare onnxruntime with torch at each batch size."""
    written = OnnxModel(draft, threads=torch.get_num_threads())
    tensors = [leaf for _, leaf in named_tensors(inputs)]
    fixed = [
        f"{name} {shape}"
        for name, shape, tensor in zip(
            written.input_names, written.input_shapes, tensors, strict=True
        )
        if carries_batch(tensor, batch_size(inputs)) and isinstance(shape[0], int)
    ]
    if dynamic_batch and fixed:
        raise ExportError(
            "The model fixes its batch size.",
            seen=", ".join(fixed),
            hint="write the batch size as x.shape[0] or -1 in the model, or pass "
            "dynamic_batch=False",
        )
    found = []
    for n in batches or (None,):
        resized, expected = _expected(model, inputs, n)
        feed = written.feed(tuple(leaf for _, leaf in named_tensors(resized)))
        actual = [torch.from_numpy(array) for array in written.run(feed)]
        named = [(path, array) for (path, _), array in zip(expected, actual, strict=True)]
        try:
            found.append(
                compare_outputs(
                    expected, named, rtol=rtol, dtypes={p.dtype for p in model.parameters()}
                )
            )
        except VerificationError as error:
            raise ExportError(
                f"onnxruntime does not compute what torch computes at batch size {n}.",
                where=error.where,
                seen=f"{error.what} {error.seen}",
                hint="let the model fix no size and draw no random number in eval mode, or try "
                "another opset",
            ) from error
    return found


def _compare_traced(
    model: nn.Module, draft: Path, inputs: Inputs, batches: Sequence[int], *, dynamic_batch: bool
) -> list[Verification]:
    """Compare on the example and on further values, but where rounding decides what is returned."""
    found: list[Verification] = []
    undecided: list[ExportError] = []
    for number, given in enumerate(draws(inputs)):
        sizes, is_open = (() if number else batches), dynamic_batch and not number
        try:
            found += _compare(model, draft, given, sizes, dynamic_batch=is_open, rtol=TRACED_RTOL)
        except ExportError as error:
            if is_settled(model, given):
                raise
            undecided.append(error)
        if number and found:
            return found
    raise undecided[0]


def _expected(
    model: nn.Module, inputs: Inputs, n: int | None
) -> tuple[Inputs, list[tuple[str, Tensor]]]:
    """Return inputs of batch size `n` and what the model makes of them."""
    if n in {None, batch_size(inputs)}:
        return inputs, _reference(model, inputs)
    resized = with_batch(inputs, n or 1)
    try:
        expected = _reference(model, resized)
        usable = all(bool(torch.isfinite(leaf).all()) for _, leaf in expected)
    except InputError:
        usable = False
    if not usable:
        # A model may take only some values, say positive ones: then the example's rows must do.
        resized = with_batch(inputs, n or 1, fill="repeat")
        expected = _reference(model, resized)
    return resized, expected


def _reference(model: nn.Module, inputs: Inputs) -> list[tuple[str, Tensor]]:
    """Run the model on a copy of the inputs; list its output tensors."""
    args, kwargs = map_tensors(inputs, lambda tensor: tensor.detach().clone())
    try:
        with full_float32():
            outputs = model(*args, **kwargs)
        flatten_outputs(outputs)
    except Exception as error:
        raise InputError(
            "The model does not run on the example inputs.",
            where=type(model).__name__,
            seen=f"{_shapes(inputs)}; {first_lines(error)}",
            hint="pass example inputs that fit the model's forward",
        ) from error
    return named_tensors(outputs, "output")


def _export_error(error: Exception, model: nn.Module, target: Path) -> ExportError:
    where = f"{target}, {type(model).__name__}"
    if isinstance(error, LoadError):
        return ExportError(
            "onnxruntime cannot load what torch wrote.",
            where=where,
            seen=error.seen,
            hint="onnxruntime computes in float32 on the CPU: try model.float(), or another opset",
        )
    if isinstance(error, FxpruneError):
        where = "; ".join(filter(None, (where, error.where)))
        return ExportError(error.what, where=where, seen=error.seen, hint=error.hint)
    if isinstance(error, OSError):
        return ExportError(
            "The ONNX file cannot be written.",
            where=where,
            seen=first_lines(error),
            hint="pass a path in a directory that is writable and has room",
        )
    if decides_by_values(error):
        return ExportError(
            "The model decides by values, so it has no graph that could be written.",
            where=where,
            seen=first_lines(_root(error)),
            hint="pass traced=True to write what one run of it computes, if its decisions are the "
            "same for all inputs or made for this, as in torchvision's detectors",
        )
    return ExportError(
        "The model could not be turned into a valid ONNX file.",
        where=where,
        seen=first_lines(_root(error)),
        hint="the error this one was raised from tells more; try model.float(), "
        "dynamic_batch=False or another opset",
    )


def _root(error: BaseException) -> BaseException:
    root = error
    while root.__cause__ is not None:  # torch.onnx wraps what went wrong in pages of advice
        root = root.__cause__
    return root


def _target(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(
            "The 'path' argument of export_onnx must be a str or a PathLike.",
            seen=type(path).__name__,
        )
    target = Path(path)
    if target.is_dir():
        raise ExportError(
            "The path is a directory.", where=str(target), hint="pass the name of a file"
        )
    if not target.parent.is_dir():
        raise ExportError(
            "The directory of the path does not exist.",
            where=str(target.parent),
            hint="create it first",
        )
    return target


def _shapes(value: object) -> str:
    return ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for _, tensor in named_tensors(value))
