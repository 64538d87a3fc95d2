"""Let symbolic tracing see tensors made in a forward: ``torch.zeros(x.size(0), 64)``.

torch takes such a call apart by the types of its arguments before it asks a traced value, and fails
on many spellings (``zeros() takes 1 positional argument but 2 were given``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

__all__ = ["first_proxy", "traced_factories"]

_NAMES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros")


@contextmanager
def traced_factories() -> Iterator[None]:
    """Make torch's factory functions give a traced value when an argument is one."""
    plain = {name: getattr(torch, name) for name in _NAMES}
    try:
        for name, factory in plain.items():
            setattr(torch, name, _traced(factory))
        yield
    finally:
        for name, factory in plain.items():
            setattr(torch, name, factory)


def _traced(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = first_proxy((args, kwargs))
        if proxy is None:
            return factory(*args, **kwargs)
        return proxy.tracer.create_proxy("call_function", factory, args, kwargs)

    return call


def first_proxy(value: Any) -> fx.Proxy | None:
    """Return the first traced value in nested arguments, or None."""
    if isinstance(value, fx.Proxy):
        return value
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        return next((p for p in map(first_proxy, value) if p is not None), None)
    return None
