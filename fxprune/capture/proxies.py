"""What traced values answer when the code that is traced asks what they are.

``isinstance(x, Tensor)``, ``type(x)``, ``torch.is_tensor(x)`` and ``hasattr(x, "name")`` are
answered as for the value itself; the first two by other functions of these names where the model's
code is, because a class that only says it is a Tensor would be believed by torch's C++ as well. So
is ``len(x)``, which Python itself would turn into the batch size of the example.
Questions that are asked elsewhere are answered wrong: for their sake the graph is compared with the
model, see `agreement`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["TensorProxy", "answered_types"]

_MACHINERY = ("torch", "fxprune")


class TensorProxy(fx.Proxy):
    """A traced value that is taken for a tensor."""

    @property
    def seen_as(self) -> type:
        """The type of the value."""
        return Tensor

    def __getattr__(self, k: str) -> Any:
        """Trace the attributes that tensors have; others do not exist."""
        if not hasattr(Tensor, k):
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return super().__getattr__(k)


@contextmanager
def answered_types(model: nn.Module) -> Iterator[None]:
    """Let the modules in which a model's classes are written see traced values as what they are."""
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    names = {k.__module__ for k in kinds if k.__module__.partition(".")[0] not in _MACHINERY}
    spaces = [vars(sys.modules[name]) for name in names - {"builtins"} if name in sys.modules]
    patched = [(s, name) for s in spaces for name in _ANSWERS if name not in s]
    plain = torch.is_tensor
    try:
        for space, name in patched:
            space[name] = _ANSWERS[name]
        torch.is_tensor = lambda obj: _isinstance(obj, Tensor)  # type: ignore[assignment]
        yield
    finally:
        torch.is_tensor = plain
        for space, name in patched:
            del space[name]


def _kind(obj: Any) -> Any:
    """Return the type of a value; that of a traced one as it says."""
    return obj.seen_as if hasattr(type(obj), "seen_as") else type(obj)


def _isinstance(obj: Any, kinds: Any) -> bool:
    kind = _kind(obj)
    return isinstance(obj, kinds) if kind is type(obj) else issubclass(kind, kinds)


class _MetaType(type):
    def __call__(cls, *args: Any) -> Any:
        return type(*args) if len(args) > 1 else _kind(*args)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, type)


class _Type(metaclass=_MetaType):
    """Stands for `type`, as a function and in ``isinstance(kind, type)``."""


def _len(obj: Any) -> Any:
    return obj.seen_length() if hasattr(type(obj), "seen_length") else len(obj)


_ANSWERS = {"isinstance": _isinstance, "type": _Type, "len": _len}
