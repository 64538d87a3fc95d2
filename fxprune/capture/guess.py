"""Guess example inputs, when none are given, from the first layer that reads the model's input."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from fxprune._graphs import fetch
from fxprune.errors import InputError

__all__ = ["candidate_inputs", "likely_inputs"]

_HINT = "pass example_inputs: a tensor, a tuple or a dict of keyword arguments"
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def candidate_inputs(root: nn.Module, graph: fx.Graph) -> Iterator[Tensor]:
    """Yield inputs of likely shapes, most likely first; batch 1, on the meta device.

    Raises
    ------
    InputError
        If the model has several inputs or starts with a layer that tells nothing about its input.
    """
    placeholders = [n for n in graph.nodes if n.op == "placeholder" and not n.args]
    if len(placeholders) != 1:
        raise InputError(
            f"cannot guess example inputs for a model with {len(placeholders)} inputs",
            seen=", ".join(str(n.target) for n in placeholders),
            hint=_HINT,
        )
    yield from _inputs_of(root, _first_layer(root, placeholders[0]))


def likely_inputs(model: nn.Module) -> Iterator[Tensor]:
    """Yield inputs of likely shapes for a model without a graph: its first layer tells.

    Raises
    ------
    InputError
        If the forward needs several inputs, or no layer tells anything about its input.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _STARRED]
    if len(needed) != 1:
        raise InputError(
            f"cannot guess example inputs for a model with {len(needed)} inputs",
            seen=", ".join(needed),
            hint=_HINT,
        )
    yield from _inputs_of(model, next((m for m in model.modules() if isinstance(m, _KNOWN)), None))


def _inputs_of(root: nn.Module, layer: nn.Module | None) -> Iterator[Tensor]:
    dtype = next((p.dtype for p in root.parameters() if p.dtype.is_floating_point), torch.float32)
    for shape in _shapes(layer):
        if isinstance(layer, nn.Embedding):
            yield torch.empty(shape, dtype=torch.long, device="meta")
        else:
            yield torch.empty(shape, dtype=dtype, device="meta")


def _first_layer(root: nn.Module, start: fx.Node) -> nn.Module | None:
    seen, queue = {start}, [start]
    while queue:
        node = queue.pop(0)
        for user in node.users:
            if user.op == "call_module":
                module = fetch(root, str(user.target))
                if isinstance(module, _KNOWN):
                    return module
            if user not in seen:
                seen.add(user)
                queue.append(user)
    return None


_KNOWN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.LSTM, nn.GRU, nn.RNN)


def _shapes(layer: nn.Module | None) -> list[tuple[int, ...]]:
    if isinstance(layer, nn.Conv3d):
        c = layer.in_channels
        return [(1, c, 16, 112, 112), (1, c, 16, 224, 224), (1, c, 8, 32, 32)]
    if isinstance(layer, nn.Conv2d):
        c = layer.in_channels
        return [(1, c, s, s) for s in (224, 299, 256, 64, 32, 28, 512)]
    if isinstance(layer, nn.Conv1d):
        return [(1, layer.in_channels, n) for n in (1024, 16000, 128)]
    if isinstance(layer, nn.Linear):
        return [(1, layer.in_features), (1, 16, layer.in_features)]
    if isinstance(layer, (nn.LSTM, nn.GRU, nn.RNN)):
        return [(16, 1, layer.input_size), (1, 16, layer.input_size)]
    if isinstance(layer, nn.Embedding):
        return [(1, 16), (16,)]
    raise InputError(
        "cannot guess example inputs: no convolution, linear, recurrent or embedding layer "
        "reads the model's input",
        hint=_HINT,
    )
