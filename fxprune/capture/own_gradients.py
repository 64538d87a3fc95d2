"""Keep calls of a `torch.autograd.Function` whole while a model is traced.

Traced through, only what its forward computes would be left in the graph; the gradient that it
defines (a straight-through estimator's, say) would be lost without a word. The graph gets the class
as an attribute and calls its method ``apply``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fxprune.capture.factories import first_proxy

__all__ = ["call_of_function", "kept_gradients"]

_Function = type[torch.autograd.Function]


@contextmanager
def kept_gradients() -> Iterator[None]:
    """Make a call of every such class, but torch's own, one call in the graph.

    The tracer has a method ``keep_function(cls, args)`` that makes it. ``apply`` itself is
    often bound to another name before; what it calls are these methods of the class.
    """
    before: list[tuple[_Function, str, Any]] = []
    for cls in _subclasses(torch.autograd.Function):
        separate = cls.setup_context is not torch.autograd.Function.setup_context
        made = {"forward": _forward(cls, cls.forward, separate)}
        if separate:
            made["setup_context"] = _setup_context(cls.setup_context)
        for name, method in made.items():
            before.append((cls, name, cls.__dict__.get(name)))
            setattr(cls, name, staticmethod(method))
    try:
        yield
    finally:
        for cls, name, method in before:
            if method is None:
                delattr(cls, name)
            else:
                setattr(cls, name, method)


def _subclasses(cls: _Function) -> list[_Function]:
    """Return all classes below one whose code is not torch's."""
    found = [below for child in cls.__subclasses__() for below in (child, *_subclasses(child))]
    return [c for c in dict.fromkeys(found) if c.__module__.partition(".")[0] != "torch"]


def _forward(cls: _Function, plain: Callable[..., Any], separate: bool) -> Callable[..., Any]:
    def forward(*given: Any) -> Any:
        args = given if separate else given[1:]  # without the context
        proxy = first_proxy(args)
        if proxy is None:
            return plain(*given)
        tracer: Any = proxy.tracer
        return tracer.keep_function(cls, args)

    return forward


def _setup_context(plain: Callable[..., Any]) -> Callable[..., Any]:
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        if first_proxy(inputs) is None:
            plain(ctx, inputs, output)

    return setup_context


def call_of_function(tracer: fx.Tracer, cls: type, args: Any) -> fx.Proxy:
    """Make the call's node, and one for the class; both modes' graphs name it alike."""
    name = cls.__name__
    while getattr(tracer.root, name, cls) is not cls:
        name += "_"
    setattr(tracer.root, name, cls)
    held = tracer.create_proxy("get_attr", name, (), {})
    return tracer.create_proxy("call_method", "apply", (held, *args), {})
