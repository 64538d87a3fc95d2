"""Capture: from any model to torch.fx graphs over one set of parameters.

The ways are the entries of `_WAYS`, tried in order: a graph that the user captured is taken as it
is, any other model is traced symbolically. Each way takes a model and what is known of its inputs,
and returns a `Captured` or raises `CaptureError`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from fxprune.capture.symbolic import trace_modes
from fxprune.errors import CaptureError
from fxprune.modes import merge_modules, split_modes

__all__ = ["Captured", "capture"]


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured model.

    Attributes
    ----------
    root : nn.Module
        Holds the modules, parameters and buffers that the graphs name.
    graphs : dict[str, fx.Graph]
        By mode: ``"eval"``, and ``"train"`` where it differs.
    """

    root: nn.Module
    graphs: dict[str, fx.Graph]


def _given(model: nn.Module, given: int | None, names: frozenset[str]) -> Captured:
    if not isinstance(model, fx.GraphModule):
        raise CaptureError("the model is not a torch.fx.GraphModule")
    modes = split_modes(model)
    if modes is not None:
        graphs = {mode: copy.deepcopy(stage.graph) for mode, stage in modes.items()}
        root = merge_modules(modes["eval"], modes["train"])
        root.training = model.training
        return Captured(root, graphs)
    return Captured(model, {"eval": copy.deepcopy(model.graph)})


def _symbolic(model: nn.Module, given: int | None, names: frozenset[str]) -> Captured:
    return Captured(model, trace_modes(model, given, names))


_WAYS: tuple[Callable[[nn.Module, int | None, frozenset[str]], Captured], ...] = (_given, _symbolic)


def capture(
    model: nn.Module, given: int | None = None, names: frozenset[str] = frozenset()
) -> Captured:
    """Capture a model by the first way that works.

    Parameters
    ----------
    model : nn.Module
        A private copy; its modules become the captured model's.
    given : int, optional
        Number of positional example inputs, when they are known.
    names : frozenset of str
        Names of keyword example inputs.

    Raises
    ------
    CaptureError
        If no way works; it is the error of the last one tried.
    """
    for way in _WAYS[:-1]:
        try:
            return way(model, given, names)
        except CaptureError:
            continue
    return _WAYS[-1](model, given, names)
