"""Symbolic tracing of one call whose shapes are known: attention as functions, torch's containers.

Plain symbolic tracing cannot follow code that decides by sizes (padding to whole windows, no shift
where a window covers the image), so such code is kept from it, with ``torch.fx.wrap`` or as a leaf
module. At one call site the shapes are known. Every traced value here carries what it is on meta
tensors of two batch sizes: a number that is the same for both is a plain number, and branches and
loops on it run; one that differs depends on the batch and stays a node of the graph.

What cannot be traced even so (values of tensors, numbers made of the batch size) raises, and the
call is left as it was.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune._graphs import fetch, plain_arguments
from fxprune.analysis.layouts import RememberedLayouts
from fxprune.capture.containers import CONTAINERS, readable_forward
from fxprune.capture.factories import traced_factories
from fxprune.capture.multihead import explicit_attention
from fxprune.capture.own_gradients import kept_gradients
from fxprune.capture.symbolic import SymbolicTracer

__all__ = ["LoopError", "MetaTwins", "OneSizeError", "ShapedTracer", "Twin"]

Twin = tuple[Any, Any]
"""A value at either batch size."""

_PLAIN = (bool, int, float, str)


class DataDependentError(fx.proxy.TraceError):
    """A forward decides by the values of a tensor."""


class OneSizeError(fx.proxy.TraceError):
    """A forward takes one size only, of sizes that a graph has to leave open."""


class LoopError(OneSizeError):
    """A forward loops over an axis whose size a graph has to leave open."""


class MetaTwins:
    """Meta tensors and modules that stand for real ones."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[Tensor, Tensor]] = {}
        self._modules: dict[int, tuple[nn.Module, nn.Module]] = {}

    def tensor(self, real: Tensor) -> Tensor:
        """Return the meta twin of a tensor, always the same."""
        if id(real) not in self._tensors:
            made = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device="meta")
            self._tensors[id(real)] = real, made
        return self._tensors[id(real)][1]

    def module(self, real: nn.Module) -> nn.Module:
        """Return a copy of a module with meta tensors, in evaluation mode."""
        if id(real) not in self._modules:
            tensors = (*real.parameters(), *real.buffers())
            memo: dict[int, Any] = {id(t): self.tensor(t) for t in tensors}
            self._modules[id(real)] = real, copy.deepcopy(real, memo).eval()
        return self._modules[id(real)][1]

    def run(self, root: nn.Module, node: fx.Node, lookup: Callable[[fx.Node], Any]) -> Any:
        """Return the value of a node on meta tensors."""
        args, kwargs = (self.value(plain_arguments(a, lookup)) for a in (node.args, node.kwargs))
        return self.call(root, node.op, node.target, args, kwargs)

    def call(self, root: nn.Module, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        """Return what a call gives on meta tensors."""
        if kind == "get_attr":
            return self.value(fetch(root, str(target)))
        with RememberedLayouts():
            if kind == "call_module":
                module = self.module(fetch(root, str(target)))
                inside = readable_forward(module) if isinstance(module, CONTAINERS) else module
                return inside(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], str(target))(*args[1:], **kwargs)
            return target(*args, **kwargs)

    def value(self, given: Any) -> Any:
        """Replace the tensors in a value by their meta twins."""
        if isinstance(given, Tensor):
            return given if given.is_meta else self.tensor(given)
        if isinstance(given, (list, tuple)):
            items = [self.value(v) for v in given]
            return type(given)(*items) if hasattr(given, "_fields") else type(given)(items)
        if isinstance(given, dict):
            return {k: self.value(v) for k, v in given.items()}
        if isinstance(given, slice):
            return slice(*(self.value(v) for v in (given.start, given.stop, given.step)))
        return given


class Sizes(tuple[Any, ...]):
    """The shape of a traced tensor; tells which of its sizes are looked at."""

    look: Callable[[int], None] | None = None

    def __getitem__(self, at: Any) -> Any:
        dims = range(len(self))[at]
        for d in [dims] if isinstance(dims, int) else dims:
            if self.look is not None:
                self.look(d)
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[Any]:
        for d in range(len(self)):
            yield self[d]


class ShapedProxy(fx.Proxy):
    """A traced value that knows what it is at either batch size."""

    twin: Twin
    tracer: ShapedTracer

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    def _apply(self, function: Any, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    @property
    def seen_as(self) -> type:
        """The type of the value."""
        return type(self.twin[0])

    def __getattr__(self, k: str) -> Any:
        held = getattr(self.twin[0], k)
        if k == "shape":
            return self._size()
        if k == "size":
            return self._size
        if callable(held) and not isinstance(held, Tensor):
            return lambda *args, **kwargs: self._call(k, *args, **kwargs)
        return self._apply(getattr, k)

    def _size(self, dim: int | None = None) -> Any:
        if dim is not None:
            return self._call("size", dim)
        sides = zip(*(value.shape for value in self.twin), strict=True)
        sizes = Sizes(a if a == b else self._call("size", d) for d, (a, b) in enumerate(sides))
        sizes.look = lambda d: self.tracer.note_number("size", (self, d))
        return sizes

    def seen_length(self) -> Any:
        """Return what ``len`` answers; of a tensor a traced number, as it may be the batch's."""
        return self._size(0) if isinstance(self.twin[0], Tensor) else len(self)

    def __len__(self) -> int:
        if isinstance(self.twin[0], Tensor):
            return int(self._size(0))
        return int(self._same(*(len(value) for value in self.twin)))

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.twin[0], Tensor) and len({len(value) for value in self.twin}) > 1:
            raise LoopError("a loop over the batch: its length is that of one batch size")
        return iter([self._apply(operator.getitem, i) for i in range(len(self))])

    def __bool__(self) -> bool:
        return bool(self._same(*self.twin))

    def __index__(self) -> int:
        return operator.index(self._same(*self.twin))

    def __int__(self) -> int:
        return int(self._same(*self.twin))

    def __float__(self) -> float:
        return float(self._same(*self.twin))

    def _same(self, one: Any, other: Any) -> Any:
        if isinstance(one, Tensor):
            raise DataDependentError("a decision depends on the values of a tensor")
        if one != other:
            raise fx.proxy.TraceError("a decision depends on the batch size or on values")
        return one

    def __setitem__(self, key: Any, value: Any) -> None:
        self._apply(operator.setitem, key, value)

    def __iadd__(self, other: Any) -> Any:
        return self._apply(operator.iadd, other)

    def __isub__(self, other: Any) -> Any:
        return self._apply(operator.isub, other)

    def __imul__(self, other: Any) -> Any:
        return self._apply(operator.imul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._apply(operator.itruediv, other)


class ShapedTracer(SymbolicTracer):
    """Traces one call.

    Parameters
    ----------
    twins : MetaTwins
    call : callable
        Called with the traced inputs; what it returns is the result.
    inputs : list of Twin
        What the inputs are.

    Attributes
    ----------
    found : dict[fx.Node, Twin]
        What the traced values are.
    read : set of (int, int)
        Inputs and axes whose size became a number.
    read_more : bool
        Whether other numbers were read, of values in between.
    """

    proxy_buffer_attributes = True

    def __init__(self, twins: MetaTwins, call: Callable[..., Any], inputs: list[Twin]) -> None:
        super().__init__()
        self.found: dict[fx.Node, Twin] = {}
        self.read: set[tuple[int, int]] = set()
        self.read_more = False
        self._twins = twins
        self._call = call
        self._given = inputs
        self._running = False

    def run(self, root: nn.Module | Callable[..., Any]) -> fx.Graph:
        """Trace the call; `root` is the module called, or a function."""
        with torch.no_grad(), traced_factories(), kept_gradients():
            return self.trace(root)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make a placeholder of every input."""
        made: list[Any] = []
        for number, twin in enumerate(self._given):
            if isinstance(twin[0], _PLAIN) and twin[0] == twin[1]:
                made.append(twin[0])
                continue
            node = self.create_node("placeholder", f"input_{number}", (), {})
            made.append(self._proxy(node, twin))
        return self._call, made

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Look into torch's containers too."""
        return not isinstance(m, CONTAINERS) and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Write attention out; run modules plainly while a twin is computed."""
        if self._running:
            return forward(*args, **kwargs)
        if type(m) is nn.MultiheadAttention:
            return explicit_attention(m, *args, **kwargs)
        if isinstance(m, CONTAINERS):
            forward = readable_forward(m)
        return super().call_module(m, forward, args, kwargs)

    def keep_function(self, cls: type, args: Any) -> Any:
        """Leave a call whole that holds an own `torch.autograd.Function`."""
        raise fx.proxy.TraceError(f"{cls.__name__} has a gradient of its own")

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Give traced parameters, but not while a twin is computed."""
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> Any:
        """Make a node, unless what it gives is a number that the batch does not change."""
        if target is F.dropout and (args[1] if len(args) > 1 else kwargs.get("p", 0.5)) == 0:
            return args[0]  # so that the graphs of both modes can be one
        twin = self._twin(kind, target, args, kwargs)
        if isinstance(twin[0], _PLAIN) and twin[0] == twin[1]:
            self.note_number(target, args)
            return twin[0]
        args, kwargs = self.create_arg(args), self.create_arg(kwargs)
        return self._proxy(self.create_node(kind, target, args, kwargs), twin)

    def note_number(self, target: Any, args: Any) -> None:
        """Note what a plain number was read from; that of axes depends on no size."""
        of = args[0] if args and isinstance(args[0], ShapedProxy) else None
        if target == "size" and len(args) == 2 and of is not None and of.node.op == "placeholder":
            number = int(str(of.node.target).rpartition("_")[2])
            self.read.add((number, args[1] % of.twin[0].dim()))
        elif target != "dim" and not (target is getattr and args[1] == "ndim"):
            self.read_more = True

    def _proxy(self, node: fx.Node, twin: Twin) -> ShapedProxy:
        proxy = ShapedProxy(node, self)
        proxy.twin = self.found[node] = twin
        return proxy

    def _twin(self, kind: str, target: Any, args: Any, kwargs: Any) -> Twin:
        self._running = True
        try:
            one = self._on(0, kind, target, args, kwargs)
            try:
                other = self._on(1, kind, target, args, kwargs)
            except Exception as error:
                text = " ".join(str(error).split())
                raise OneSizeError(f"only one size fits: {type(error).__name__}: {text}") from error
        finally:
            self._running = False
        return one, other

    def _on(self, side: int, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = (self._twins.value(_at(given, side)) for given in (args, kwargs))
        return self._twins.call(self.root, kind, target, args, kwargs)


def _at(value: Any, side: int) -> Any:
    """Replace the traced values in a value by what they are at one of the batch sizes."""
    if isinstance(value, ShapedProxy):
        return value.twin[side]
    if isinstance(value, (list, tuple)):
        return type(value)(_at(v, side) for v in value)
    if isinstance(value, dict):
        return {k: _at(v, side) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_at(v, side) for v in (value.start, value.stop, value.step)))
    return value
