"""Capture by torch.export, for models that symbolic tracing cannot follow.

torch.export runs the forward on fake tensors, so control flow on shapes is followed. Batch size
stays dynamic, and so do all other sizes that the model does not fix; conditions on them that the
forward relied on become checks in the graph. What torch.export bakes in comes back: calls of
torch's own modules (`fxprune.capture.leaves`), the device, nested inputs and outputs
(`fxprune.capture.trees`); dropout, random depth and everything else that depends on the mode is
captured once in each mode.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from fxprune._compat import no_attention_fastpath, quiet_export
from fxprune.capture.both_modes import capture_modes
from fxprune.capture.draws import no_draws
from fxprune.capture.interface import Interface, named_arguments
from fxprune.capture.symbolic import failure
from fxprune.capture.transcribe import transcribe
from fxprune.capture.trees import describe, fill
from fxprune.errors import CaptureError
from fxprune.inputs import Inputs, batch_size
from fxprune.modes import in_mode

__all__ = ["depends_on_data", "export_graph", "export_modes"]

_PREFIX = "model."
_BATCH = 3
"""Batch size to export with where the example has 1, which torch.export would take for fixed."""


class _Flat(nn.Module):
    """A model that takes and returns a flat sequence of tensors.

    What the outputs were before they were flattened is put into `outputs`. With `keeps_inputs` it
    raises where the model changes a list or dict that it is given.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, outputs: list[Any], keeps_inputs: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._inputs = inputs
        self._note = outputs.append
        self._keeps_inputs = keeps_inputs

    def forward(self, *tensors: Tensor) -> tuple[Any, ...]:
        args, kwargs = fill(self._inputs, tensors)
        leaves: list[Any] = []
        out = self.model(*args, **kwargs)
        self._note(describe(out, _is_output, leaves))
        if self._keeps_inputs:
            found: list[Any] = []
            same = describe((args, kwargs), lambda v: isinstance(v, Tensor), found) == self._inputs
            if not same or any(a is not b for a, b in zip(found, tensors, strict=True)):
                raise fx.proxy.TraceError("it changes a container that it is given")
        return tuple(leaves)


def _is_output(value: Any) -> bool:
    return isinstance(value, (Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def export_modes(model: nn.Module, inputs: Inputs) -> dict[str, fx.Graph]:
    """Export a model in both modes.

    Parameters
    ----------
    model : nn.Module
        Left in the modes it had. Constants that the export finds are registered on it as buffers.
    inputs : tuple (args, kwargs)
        Example inputs; only shapes and dtypes matter.

    Returns
    -------
    dict
        ``{"eval": graph}``, and ``"train"`` as well where its graph differs.

    Raises
    ------
    CaptureError
        If the forward cannot be exported; names the line of the user's code.
    """
    return capture_modes(model, partial(_export, model, inputs), refuse=True)


def depends_on_data(error: CaptureError) -> bool:
    """Return whether an export failed because of the data: no other shape helps then."""
    return "DataDependent" in error.what


def _export(model: nn.Module, inputs: Inputs, training: bool) -> fx.Graph:
    leaves: list[Tensor] = []
    tree = describe(inputs, lambda v: isinstance(v, Tensor), leaves)
    batch = batch_size(inputs)
    batched = [batch is not None and t.shape[:1] == (batch,) for t in leaves]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    tensors = tuple(_example(t, device, many) for t, many in zip(leaves, batched, strict=True))
    with in_mode(model, training):
        for rest in (Dim.AUTO, Dim.STATIC):
            dims = tuple(
                {d: Dim.DYNAMIC if many and d == 0 else rest for d in range(t.dim())}
                for t, many in zip(tensors, batched, strict=True)
            )
            try:
                return export_graph(model, tree, tensors, dims)
            except CaptureError as error:
                last = error
                if depends_on_data(last):
                    break
    raise last


def export_graph(
    model: nn.Module,
    tree: Any,
    tensors: tuple[Tensor, ...],
    dims: tuple[dict[int, Any], ...],
    keeps_inputs: bool = False,
) -> fx.Graph:
    """Export a model in the mode it is in.

    Parameters
    ----------
    model : nn.Module
        Constants that the export finds are registered on it as buffers.
    tree : Container
        Of ``(args, kwargs)``.
    tensors : tuple of Tensor
        The leaves of the tree.
    dims : tuple of dict
        For each of them, by axis: a `torch.export.Dim`.
    keeps_inputs : bool
        Refuse a model that changes a list or dict that it is given.

    Raises
    ------
    CaptureError
        If the forward cannot be exported; names the line of the user's code.
    """
    outputs: list[Any] = []
    flat = _Flat(model, tree, outputs, keeps_inputs)
    named = named_arguments(model, tree)
    with no_attention_fastpath(), quiet_export():
        try:
            with no_draws():
                program = torch.export.export(flat, tensors, dynamic_shapes=(dims,), strict=False)
        except Exception as error:
            raise failure(model, error, "torch.export") from error
        return transcribe(program, model, Interface(named, outputs[-1]), _PREFIX)


def _example(tensor: Tensor, device: torch.device, batched: bool) -> Tensor:
    shape = list(tensor.shape)
    if batched and shape[0] == 1:
        shape[0] = _BATCH
    return torch.zeros(shape, dtype=tensor.dtype, device=device)
