"""Capture by symbolic tracing with known shapes, for models whose forward decides by sizes.

Every traced value carries what it is on meta tensors of two sizes (see `shaped`). Code that looks
at sizes then runs; what it took for granted about sizes that may vary becomes a check in the graph.
The batch size varies always; height and width of images where the forward allows it, else they are
those of the example, and others are refused.

Against torch.export it is many times faster and keeps torch's modules and functions as they are;
a part that it cannot follow (writes into tensors of its own, functions that take no traced values)
is exported, see `parts`, and where that fails the whole is left to torch.export. Nothing is taken
on trust, see `agreement`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import magic_methods

from fxprune._compat import forget_tracer, no_attention_fastpath
from fxprune._copies import share_tensors
from fxprune.capture.agreement import check_agreement
from fxprune.capture.both_modes import capture_modes
from fxprune.capture.cuts import cuts
from fxprune.capture.draws import no_draws
from fxprune.capture.exported import depends_on_data
from fxprune.capture.factories import traced_factories
from fxprune.capture.interface import add_placeholders, named_arguments
from fxprune.capture.lookups import drop_unread
from fxprune.capture.parts import PartCall, Parts
from fxprune.capture.proxies import answered_types
from fxprune.capture.shaped import (
    LoopError,
    MetaTwins,
    OneSizeError,
    ShapedProxy,
    ShapedTracer,
    Twin,
)
from fxprune.capture.sides import Free, has_sides, sides
from fxprune.capture.symbolic import SymbolicTracer, failure
from fxprune.capture.transcribe import constant_name
from fxprune.capture.trees import build, describe, fill
from fxprune.errors import CaptureError
from fxprune.inputs import Inputs, batch_size
from fxprune.modes import in_mode

__all__ = ["FixedBatchError", "trace_by_shapes"]

_WAY = "tracing with shapes"
_ONE_BATCH = (
    "a graph takes any batch size: write what the forward does to each sample as operators on the "
    "whole batch, or capture it yourself and pass the torch.fx.GraphModule"
)


class FixedBatchError(CaptureError):
    """The forward takes one batch size only: no graph leaves that open, traced or exported."""


def trace_by_shapes(model: nn.Module, inputs: Inputs) -> dict[str, fx.Graph]:
    """Trace a model in both modes with the shapes of example inputs.

    Parameters
    ----------
    model : nn.Module
        Left in the modes it had. Constants that tracing finds are registered on it as buffers.
    inputs : tuple (args, kwargs)
        Example inputs.

    Returns
    -------
    dict
        ``{"eval": graph}``, and ``"train"`` as well where its graph differs.

    Raises
    ------
    CaptureError
        If the forward cannot be traced so; names the line of the user's code. A `FixedBatchError`
        where no other way would help.
    """
    leaves: list[Tensor] = []
    tree = describe(inputs, lambda v: isinstance(v, Tensor), leaves)
    batch = batch_size(inputs)
    original, _ = share_tensors(model)
    hopeless: set[str] = set()
    free_sides = (Free(sides=True),) if any(map(has_sides, leaves)) else ()
    for free in (*free_sides, Free(), Free(times=2)):
        twins = [sides(t, t.shape[:1] == (batch,), free) for t in leaves]
        try:
            parts = Parts(model, hopeless)
            graphs = capture_modes(model, partial(_trace, parts, model, tree, twins))
            check_agreement(original, model, graphs, inputs, _WAY)
            return graphs
        except FixedBatchError:
            raise
        except CaptureError as error:
            last = error
            again = free.sides or isinstance(error.__cause__, OneSizeError)
            if not again or depends_on_data(error):
                break
    raise last


def _trace(
    parts: Parts, model: nn.Module, tree: Any, twins: list[Twin], training: bool
) -> fx.Graph:
    with in_mode(model, training):
        while True:
            tracer = _Tracer(model, tree, twins, parts)
            try:
                with _unchanged_attributes(model):
                    return tracer.run(model)
            except CaptureError as error:
                if not parts.add(tracer.calls, error):
                    raise


class _Tracer(ShapedTracer):
    """Traces the forward of a whole model.

    Attributes
    ----------
    calls : list of PartCall
        The modules that are being called, outermost first.
    """

    def __init__(self, model: nn.Module, tree: Any, inputs: list[Twin], parts: Parts) -> None:
        super().__init__(MetaTwins(), self._forward, inputs)
        self._model = model
        self._tree = tree
        self._outputs: Any = None
        self._numbers: dict[str, Any] = {}
        self._leaves: list[fx.Node] = []
        self._cuts = False
        self._parts = parts
        self.calls: list[PartCall] = []
        self._autocast = _autocast()

    def run(self, root: nn.Module | Callable[..., Any]) -> fx.Graph:
        """Return the graph of the model in the mode it is in."""
        try:
            with (
                torch.enable_grad(),
                answered_types(self._model),
                traced_factories(),
                no_attention_fastpath(),
                no_draws(),
            ):
                graph = self.trace(root)
            self._check_constants(graph)
            self._finish(graph)
        except Exception as error:
            told = failure(self._model, error, _WAY)
            if self._fixes_batch(error):
                told = FixedBatchError(told.what, where=told.where, seen=told.seen, hint=_ONE_BATCH)
            raise told from error
        forget_tracer(graph)
        return graph

    def _fixes_batch(self, error: Exception) -> bool:
        """Return whether no batch size but the one of the example can be captured."""
        if self._model.training or not isinstance(error, OneSizeError):
            return False
        sizes = {(a.shape[0], b.shape[0]) for a, b in self._given if a.shape != b.shape}
        only_batch = all(a.shape[1:] == b.shape[1:] for a, b in self._given)
        looped = isinstance(error, LoopError)
        return only_batch and (looped or all(other == 2 * one for one, other in sizes))

    def _finish(self, graph: fx.Graph) -> None:
        output = next(n for n in graph.nodes if n.op == "output")
        with graph.inserting_before(output):
            output.args = (build(graph, self._outputs, output.args[0]),)
        if self._cuts:
            self._bound(graph)
        drop_unread(graph)
        for node in graph.nodes:
            if any(source.graph is not graph for source in node.all_input_nodes):
                raise fx.proxy.TraceError("it keeps values from one call to the next")
        graph.lint()

    # -- inputs and outputs
    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make the placeholders, and check what may not vary."""
        names = named_arguments(self._model, self._tree)
        self._leaves = add_placeholders(self.graph, names)
        for node, (one, other) in zip(self._leaves, self._given, strict=True):
            for dim, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)):
                if a == b:
                    self._guard(self.graph.call_method("size", (node, dim)), a)
        pairs = zip(self._leaves, self._given, strict=True)
        return self._forward, [self._proxy(node, twin) for node, twin in pairs]

    def _forward(self, *leaves: Any) -> tuple[Any, ...]:
        args, kwargs = fill(self._tree, leaves)
        found: list[Any] = []
        out = self._model.forward(*args, **kwargs)
        self._outputs = describe(out, lambda v: isinstance(v, (Tensor, fx.Proxy)), found)
        return tuple(found)

    # -- calls
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's modules and containers: they are opened later, see `open_calls`."""
        return SymbolicTracer.is_leaf_module(self, m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Call a module as symbolic tracing does; run it plainly while a twin is computed."""
        if self._running:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return SymbolicTracer.call_module(self, m, forward, args, kwargs)
        around = len(self.calls)
        self.calls.append(PartCall.of(path, args, kwargs))
        forward = self._parts.forward(self.calls[-1]) or forward
        made = SymbolicTracer.call_module(self, m, forward, args, kwargs)
        del self.calls[around:]  # not where it raises: then it is a part that resists
        return made

    def create_arg(self, a: Any) -> Any:
        """Keep tensors made in the forward as constants, one for all that are equal."""
        if isinstance(a, Tensor) and a not in self.tensor_attrs and not _is_state(self.root, a):
            return self.create_node("get_attr", constant_name(self.root, a), (), {})
        return super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> Any:
        """Make a node; a number that was made of sizes that vary is checked, and made once."""
        if self._running:
            return super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if any(now and not before for now, before in zip(_autocast(), self._autocast, strict=True)):
            raise fx.proxy.TraceError("it switches autocast on, and a graph has no such region")
        key = f"{kind} {target} {_named(args)} {_named(kwargs)}"
        if key in self._numbers:
            return self._numbers[key]
        self._cuts = self._cuts or cuts(target, args)
        made = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if not isinstance(made, ShapedProxy):
            if any(map(_varies, _proxies((args, kwargs)))):
                node = self.create_node(
                    kind, target, self.create_arg(args), self.create_arg(kwargs)
                )
                self._guard(node, made)
                self._numbers[key] = made
        elif _varies(made):
            self._numbers[key] = made
        elif not torch.is_grad_enabled() and _is_new(target, made.twin[0]):
            return super().create_proxy("call_method", "detach", (made,), {})
        return made

    def note_number(self, target: Any, args: Any) -> None:
        """Note nothing: what may not vary is checked where it is made a number."""

    # -- checks
    def _guard(self, node: fx.Node, value: Any) -> None:
        """Refuse inputs for which a number is another one than in the trace."""
        same = self.graph.call_function(operator.eq, (node, value))
        text = f"captured for inputs with {_text(node)} == {value}: give auto_gate such inputs"
        self.graph.call_function(torch._assert, (same, text))

    def _bound(self, graph: fx.Graph) -> None:
        """Refuse inputs smaller than the example: a cut that fits that may not fit them."""
        first = next(n for n in graph.nodes if n not in set(self._leaves) and n.op != "placeholder")
        with graph.inserting_before(first):
            for node, (one, other) in zip(self._leaves, self._given, strict=True):
                for dim in range(1, one.dim()):
                    if one.shape[dim] != other.shape[dim]:
                        size = graph.call_method("size", (node, dim))
                        fits = graph.call_function(operator.ge, (size, one.shape[dim]))
                        text = f"captured for inputs with {_text(size)} >= {one.shape[dim]}: "
                        text += "give auto_gate such inputs"
                        graph.call_function(torch._assert, (fits, text))

    def _check_constants(self, graph: fx.Graph) -> None:
        """Refuse writes into a tensor that the forward makes anew each time."""
        for node in graph.nodes:
            if _writes(node) and isinstance(source := _base(node), fx.Node):
                made = source.op == "get_attr" and str(source.target).startswith("_tensor_constant")
                if made:
                    raise fx.proxy.TraceError("a write into a tensor made in the forward")


@contextmanager
def _unchanged_attributes(model: nn.Module) -> Iterator[None]:
    """Undo what a forward sets on its modules: the next trace would find traced values there."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            module.__dict__.clear()
            module.__dict__.update(attributes)


def _is_state(root: nn.Module, tensor: Tensor) -> bool:
    return any(tensor is own for own in (*root.parameters(), *root.buffers()))


def _autocast() -> tuple[bool, ...]:
    return tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))


def _varies(value: ShapedProxy) -> bool:
    return isinstance(value.twin[0], (bool, int, float))


def _proxies(value: Any) -> list[ShapedProxy]:
    if isinstance(value, ShapedProxy):
        return [value]
    if isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    items = value.values() if isinstance(value, dict) else value
    return [p for v in items for p in _proxies(v)] if isinstance(items, (list, tuple)) else []


def _named(value: Any) -> Any:
    """Return arguments with names for traced values, as a key."""
    if isinstance(value, fx.Proxy):
        return value.node
    if isinstance(value, dict):
        return {k: _named(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_named(v) for v in value]
    return id(value) if isinstance(value, Tensor) else value


def _is_new(target: Any, value: Any) -> bool:
    """Return whether a call makes a tensor that has a gradient, and does not write into one."""
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return isinstance(value, Tensor) and value.is_floating_point() and not _is_write(name)


def _is_write(name: str) -> bool:
    return name in ("setitem", "iadd", "isub", "imul", "itruediv", "__setitem__") or (
        name.endswith("_") and not name.endswith("__")
    )


def _writes(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return "out" in node.kwargs or (
        node.op in ("call_function", "call_method") and _is_write(str(name))
    )


def _base(node: fx.Node) -> Any:
    """Follow first arguments to where the memory that a node writes to comes from."""
    source: Any = node.kwargs.get("out", node.args[0] if node.args else None)
    while isinstance(source, fx.Node) and source.args and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    return source


def _text(value: Any) -> str:
    """Return an expression of sizes as one writes it."""
    if not isinstance(value, fx.Node):
        return str(value)
    if value.op == "call_method":
        return f"{value.args[0]}.{value.target}({', '.join(map(_text, value.args[1:]))})"
    name = getattr(value.target, "__name__", str(value.target))
    form = magic_methods.get(name, "")
    if form.count("{}") == len(value.args) and form:
        return form.format(*map(_text, value.args))
    return (
        value.name if value.op == "placeholder" else f"{name}({', '.join(map(_text, value.args))})"
    )
