"""Compare a captured graph with the model, before anything is built on it.

A trace can take another branch than the model does: code that asks for the type or the identity of
a value, or whether it has an attribute, gets an answer about the traced value. So no graph is taken
on trust, in either mode. Mostly the operators that both run tell that they do the same, at the cost
of a run without data; where they do not, what both return is compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fxprune._compat import no_attention_fastpath
from fxprune.capture.both_modes import is_refusal
from fxprune.capture.operations import same_operations
from fxprune.errors import CaptureError
from fxprune.inputs import Inputs, fit_inputs, flatten_outputs, map_tensors
from fxprune.modes import in_mode, unchanged_buffers

__all__ = ["check_agreement"]

_RTOL = 1e-3  # the two do the same in the same order: anything but another computation agrees


def check_agreement(
    model: nn.Module, root: nn.Module, graphs: Mapping[str, fx.Graph], inputs: Inputs, way: str
) -> None:
    """Run a model and its captured graphs in both modes, and compare what they do.

    Parameters
    ----------
    model : nn.Module
        The model as it was before it was captured, with the tensors of `root`. It and they are as
        they were afterwards.
    root : nn.Module
        Holds what the graphs name.
    graphs : mapping of str to fx.Graph
        By mode: ``"eval"``, and ``"train"`` where it differs.
    inputs : tuple (args, kwargs)
        Example inputs; where they are only shapes, values are drawn, always the same ones.
    way : str
        How the graphs were captured, for the error.

    Raises
    ------
    CaptureError
        If a graph does not run, or returns something else. A model that does not run itself is
        compared with nothing. In training mode, values decide nothing about a model that draws
        random numbers in another order than its graph.
    """
    inputs = fit_inputs(model, inputs)
    alike = True
    for training, graph in ((False, graphs["eval"]), (True, graphs.get("train", graphs["eval"]))):
        if is_refusal(graph):
            continue
        # what differs in one mode (a constant that was folded) does so in the other
        alike = alike and same_operations(model, root, graph, inputs, training)
        if not alike:
            _check_values(model, fx.GraphModule(root, graph), inputs, training, way)


def _check_values(
    model: nn.Module, graph: fx.GraphModule, inputs: Inputs, training: bool, way: str
) -> None:
    try:
        expected = _outputs(model, inputs, training)
    except Exception:  # noqa: BLE001  # the analysis tells the user, with more to say
        return
    mode = "training" if training else "evaluation"
    try:
        found = _outputs(graph, inputs, training)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be captured by {way}: its graph does not run in "
            f"{mode} mode: {type(error).__name__}: {error}"
        ) from error
    if _agree(found, expected):
        return
    if not training or _agree(_outputs(model, inputs, training, seed=1), expected):
        raise CaptureError(
            f"{type(model).__name__} cannot be captured by {way}: in {mode} mode the graph returns "
            "something else than the model",
            hint="the forward may ask for the type, the identity or an attribute of a tensor "
            "(type(x) is Tensor, x is y), which is another one while it is captured: decide that "
            "in __init__, or pass a torch.fx.GraphModule that you traced yourself",
        )


def _outputs(module: nn.Module, inputs: Inputs, training: bool, seed: int = 0) -> list[Tensor]:
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    devices = [device] if device.type == "cuda" else []
    args, kwargs = _values(inputs, device)
    with (
        torch.no_grad(),
        no_attention_fastpath(),
        in_mode(module, training),
        unchanged_buffers(module),
        torch.random.fork_rng(devices=devices),
    ):
        torch.manual_seed(seed)
        return [t.clone() for _, t in flatten_outputs(module(*args, **kwargs))]


def _agree(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(_agrees, some, others))


def _agrees(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.numel() or not one.dtype.is_floating_point:
        return torch.equal(one, other)
    size = float(torch.nan_to_num(other).abs().max())
    return torch.allclose(one, other, rtol=_RTOL, atol=_RTOL * size, equal_nan=True)


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
