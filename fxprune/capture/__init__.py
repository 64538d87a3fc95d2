"""Capture: from any model to torch.fx graphs over one set of parameters.

The ways are the entries of `_WAYS`, tried in order: a graph that the user captured is taken as it
is, any other model is traced symbolically; where that fails, with the shapes of its inputs, parts
that resist being exported, and where that fails too the whole is exported. Each way takes a model
and what is known of its inputs, and returns a `Captured` or raises `CaptureError`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import fx, nn

from fxprune._copies import share_tensors
from fxprune._frames import forget_frames
from fxprune.capture.agreement import check_agreement
from fxprune.capture.by_shapes import FixedBatchError, trace_by_shapes
from fxprune.capture.exported import depends_on_data, export_modes
from fxprune.capture.guess import likely_inputs
from fxprune.capture.symbolic import PACKED, trace_modes
from fxprune.errors import CaptureError, FxpruneError
from fxprune.inputs import Inputs
from fxprune.modes import merge_modules, split_modes

__all__ = ["Captured", "capture", "is_final", "joined", "trace", "ways"]


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured model.

    Attributes
    ----------
    root : nn.Module
        Holds the modules, parameters and buffers that the graphs name.
    graphs : dict[str, fx.Graph]
        By mode: ``"eval"``, and ``"train"`` where it differs.
    inputs : tuple (args, kwargs), optional
        Example inputs that were guessed in order to capture it.
    way : str
        How it was captured.
    original : nn.Module, optional
        The model as it was before, with the same tensors, where the graphs have not been compared
        with it for want of inputs.
    """

    root: nn.Module
    graphs: dict[str, fx.Graph]
    inputs: Inputs | None = None
    way: str = ""
    original: nn.Module | None = None

    def check(self, inputs: Inputs) -> None:
        """Compare the graphs with the model where that has not been done.

        Raises
        ------
        CaptureError
            If they do something else.
        """
        if self.original is not None:
            check_agreement(self.original, self.root, self.graphs, inputs, self.way)


def _given(model: nn.Module, inputs: Inputs | None) -> Captured:
    if not isinstance(model, fx.GraphModule):
        raise CaptureError("the model is not a torch.fx.GraphModule")
    modes = split_modes(model)
    if modes is not None:
        graphs = {mode: copy.deepcopy(stage.graph) for mode, stage in modes.items()}
        root = merge_modules(modes["eval"], modes["train"])
        root.training = model.training
        return Captured(root, graphs)
    return Captured(model, {"eval": copy.deepcopy(model.graph)})


def _symbolic(model: nn.Module, inputs: Inputs | None) -> Captured:
    given = None if inputs is None else len(inputs[0])
    names = frozenset() if inputs is None else frozenset(inputs[1])
    original, _ = share_tensors(model)
    return Captured(model, trace_modes(model, given, names), original=original)


def _by_shapes(model: nn.Module, inputs: Inputs | None) -> Captured:
    return _with_inputs(trace_by_shapes, model, inputs)


def _exported(model: nn.Module, inputs: Inputs | None) -> Captured:
    original, _ = share_tensors(model)
    return replace(_with_inputs(export_modes, model, inputs), original=original)


def _with_inputs(
    way: Callable[[nn.Module, Inputs], dict[str, fx.Graph]],
    model: nn.Module,
    inputs: Inputs | None,
) -> Captured:
    """Capture in a way that needs inputs: these, or the first likely ones that do."""
    if inputs is not None:
        return Captured(model, way(model, inputs))
    failures = []
    for guess in likely_inputs(model):
        try:
            return Captured(model, way(model, ((guess,), {})), ((guess,), {}))
        except CaptureError as error:
            failures.append(error)
            if depends_on_data(error) or is_final(error):
                break  # no other shape helps
    raise failures[0]


_HINT = (
    "control flow on tensor values has no graph: rewrite that line (torch.where in place of an "
    "if), move it into a function marked with torch.fx.wrap, or pass a torch.fx.GraphModule or a "
    "torch.export.ExportedProgram that you captured yourself"
)

_Way = Callable[[nn.Module, Inputs | None], Captured]

_GIVEN = "given"
_WAYS: dict[str, _Way] = {
    "symbolic tracing": _symbolic,
    "tracing with shapes": _by_shapes,
    "torch.export": _exported,
}


def ways(model: nn.Module, only: str = "") -> tuple[str, ...]:
    """Return the names of the ways to capture a model, in the order to try them.

    Parameters
    ----------
    model : nn.Module
    only : str
        The one way to take, where the model has several.
    """
    if isinstance(model, fx.GraphModule):
        return (_GIVEN,)
    return tuple(way for way in _WAYS if only in ("", _GIVEN, way))


def capture(model: nn.Module, inputs: Inputs | None = None, way: str = "") -> Captured:
    """Capture a model.

    Parameters
    ----------
    model : nn.Module
        A private copy; its modules become the captured model's.
    inputs : tuple (args, kwargs), optional
        Example inputs, when they are known.
    way : str
        One of `ways`; the first that works when left out.

    Returns
    -------
    Captured
        To be compared with the model (`Captured.check`) once inputs are known.

    Raises
    ------
    CaptureError
        If it does not work; of several ways, it tells what each said.
    """
    failures = []
    for name in [way] if way else ways(model):
        try:
            return replace(_WAYS.get(name, _given)(model, inputs), way=name)
        except CaptureError as error:
            failures.append(error)
            forget_frames(error)
            if is_final(error):
                break
    if len(failures) == 1:
        raise failures[0]
    raise joined(model, failures) from failures[-1]


def is_final(error: FxpruneError) -> bool:
    """Return whether the ways that follow would fail as this one did."""
    return isinstance(error, FixedBatchError)


def trace(model: nn.Module, given: int | None, names: frozenset[str]) -> Captured:
    """Capture a part of a model: take its graph if it is one, or trace it symbolically.

    Parameters
    ----------
    model : nn.Module
        A private copy.
    given : int or None
        Number of positional arguments it is called with; None when that is not known.
    names : frozenset of str
        Names of the keyword arguments it is called with.

    Raises
    ------
    CaptureError
        If it cannot be traced.
    """
    if isinstance(model, fx.GraphModule):
        return _given(model, None)
    original, _ = share_tensors(model)
    return Captured(model, trace_modes(model, given, names), original=original)


def joined(model: nn.Module, failures: list[CaptureError]) -> CaptureError:
    """Return one error that tells what every way said; the last way follows most, so it leads."""
    leading = failures[-1] if failures[-1].where else failures[0]
    seen = [
        (f.what.partition(" by ")[2] or f.what) + (f" ({f.where})" if f.where else "")
        for f in failures
    ]
    return CaptureError(
        f"{type(model).__name__} cannot be captured as a graph",
        where=leading.where + (f": {leading.seen}" if leading.seen else ""),
        seen="; ".join(seen),
        hint=PACKED if any(f.hint == PACKED for f in failures) else _HINT,
    )
