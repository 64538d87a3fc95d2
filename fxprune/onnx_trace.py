"""ONNX by following one run of a model, for models that decide by values (detectors).

torch.export follows code, and refuses code that decides by values. torch's older exporter follows
one run: what the run decided is written down. torchvision's detectors are written so that this is
right for any image: what depends on values in them is an operator then. Nobody knows that of other
models, so a file is made in this way for models that were captured by regions, or on request; it is
compared on further values, and the caller is warned.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune.errors import VerificationError
from fxprune.inputs import Inputs, fit_inputs, flatten_outputs, map_tensors
from fxprune.verify import compare_outputs

__all__ = [
    "TRACED_RTOL",
    "TracedExportWarning",
    "decides_by_values",
    "draws",
    "is_settled",
    "trace_onnx",
]


_DRAWS = 6
TRACED_RTOL = 1e-3
"""Allowed error of such a file, as a share of the output's largest magnitude (no unit).

Ten times that of float32: what a detector pools depends on boxes that it computed before, and their
rounding errors with the slope of the features (1.2e-4 was seen).
"""


class TracedExportWarning(UserWarning):
    """A model that decides by values was written as one run of it went."""


def decides_by_values(error: BaseException | None) -> bool:
    """Return whether torch.export refused a model because its code decides by values.

    Parameters
    ----------
    error : BaseException or None
        What it raised.
    """
    while error is not None:
        if "DataDependent" in type(error).__name__ or "DataDependent" in str(error):
            return True
        error = error.__cause__
    return False


def trace_onnx(
    flat: nn.Module,
    tensors: tuple[Tensor, ...],
    path: Path,
    opset: int | None,
    inputs: Sequence[str],
    outputs: Sequence[str],
    is_open: Sequence[bool],
) -> None:
    """Write what one run of a model computes.

    Parameters
    ----------
    flat : nn.Module
        From tensors to tensors, in eval mode.
    tensors : tuple of Tensor
        What it is run on.
    path : Path
        The file to write.
    opset : int or None
        Version of the operator set; None for the one that exporter recommends.
    inputs, outputs : sequence of str
        Names of the tensors.
    is_open : sequence of bool
        Whether the leading size of each input stays open.
    """
    torch.onnx.export(
        flat,
        tensors,
        path,
        dynamo=False,
        verbose=False,
        opset_version=opset,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={
            name: {0: "batch"} for name, leave in zip(inputs, is_open, strict=True) if leave
        },
    )


def draws(inputs: Inputs) -> Iterator[Inputs]:
    """Yield the inputs, then the same with the values of each tensor in other orders.

    Parameters
    ----------
    inputs : tuple of (tuple, dict)

    Yields
    ------
    tuple of (tuple, dict)
        Always the same ones.
    """
    yield inputs
    for seed in range(_DRAWS):
        yield _shuffled(inputs, seed)


def is_settled(model: nn.Module, inputs: Inputs, rtol: float = TRACED_RTOL) -> bool:
    """Return whether a model returns on these inputs what it returns in double precision.

    Where it does not, rounding decides, and no two programs need agree.

    Parameters
    ----------
    model : nn.Module
        In single precision or less; copied.
    inputs : tuple of (tuple, dict)
    rtol : float
        Largest difference, as a share of the output's largest magnitude (no unit).
    """
    results = []
    for made in (model, copy.deepcopy(model).double()):
        args, kwargs = map_tensors(fit_inputs(made, inputs), lambda t: t.detach().clone())
        try:
            returned = flatten_outputs(made(*args, **kwargs))
        except Exception:  # noqa: BLE001  # it computes in one precision only: nothing is known
            return True
        results.append([(path, t.float() if t.is_floating_point() else t) for path, t in returned])
    try:
        compare_outputs(*results, rtol=rtol)
    except VerificationError:
        return False
    return True


def _shuffled(inputs: Inputs, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def shuffle(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.detach().flatten()[order].view(tensor.shape)

    mixed: Inputs = map_tensors(inputs, shuffle)
    return mixed
