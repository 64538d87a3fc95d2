"""Compare a captured graph with the model on values, before anything is built on it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune._compat import no_attention_fastpath
from fxprune.errors import CaptureError
from fxprune.inputs import Inputs, flatten_outputs, map_tensors
from fxprune.modes import in_mode

__all__ = ["check_agreement"]

_RTOL = 1e-3  # the two do the same in the same order: anything but another computation agrees


def check_agreement(model: nn.Module, graph: fx.Graph, inputs: Inputs) -> None:
    """Run a model and its captured graph in evaluation mode, and compare what they return.

    Parameters
    ----------
    model : nn.Module
        Has run in evaluation mode afterwards; its modes are as they were.
    graph : fx.Graph
    inputs : tuple (args, kwargs)
        Example inputs; where they are only shapes, values are drawn, always the same ones.

    Raises
    ------
    CaptureError
        If the graph does not run, or returns something else. A model that does not run itself is
        compared with nothing.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.no_grad(), no_attention_fastpath(), in_mode(model, False):
        args, kwargs = _values(inputs, device)
        try:
            expected = _tensors(model(*args, **kwargs))
        except Exception:  # noqa: BLE001  # the analysis tells the user, with more to say
            return
        args, kwargs = _values(inputs, device)
        try:
            found = _tensors(fx.GraphModule(model, graph)(*args, **kwargs))
        except Exception as error:
            raise CaptureError(
                f"the graph of {type(model).__name__} cannot be captured by tracing with shapes: "
                f"it does not run: {type(error).__name__}: {error}"
            ) from error
    same = len(found) == len(expected) and all(map(_agree, found, expected))
    if not same:
        raise CaptureError(
            f"{type(model).__name__} cannot be captured by tracing with shapes: "
            "the graph returns something else than the model"
        )


def _agree(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel() or not one.dtype.is_floating_point:
        return torch.equal(one, other)
    size = float(torch.nan_to_num(other).abs().max())
    return torch.allclose(one, other, rtol=_RTOL, atol=_RTOL * size, equal_nan=True)


def _tensors(value: Any) -> list[Tensor]:
    return [tensor for _, tensor in flatten_outputs(value)]


def _values(inputs: Inputs, device: torch.device) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor.detach().clone().to(device)
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
        return torch.rand(tensor.shape, generator=generator).to(device, tensor.dtype)

    filled: Inputs = map_tensors(inputs, fill)
    return filled
