"""ONNX by following one run of a model, for models that decide by values (detectors).

torch.export follows code, and refuses code that decides by values. torch's older exporter follows
one run: what the run decided is written down. torchvision's detectors are written so that this is
right for any image: what depends on values in them is an operator then. Nobody knows that of other
models, so a file is made in this way for models that were captured by regions, or on request; it is
compared on further values, and the caller is warned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fxprune.inputs import Inputs, map_tensors

__all__ = ["TracedExportWarning", "decides_by_values", "shuffled", "trace_onnx"]


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


def shuffled(inputs: Inputs) -> Inputs:
    """Return the inputs with the values of each tensor in another order, always the same.

    Parameters
    ----------
    inputs : tuple of (tuple, dict)
    """
    generator = torch.Generator().manual_seed(0)

    def shuffle(tensor: Tensor) -> Tensor:
        order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
        return tensor.detach().flatten()[order].view(tensor.shape)

    mixed: Inputs = map_tensors(inputs, shuffle)
    return mixed
