"""What traced values answer when the code that is traced asks what they are.

``isinstance(x, Tensor)``, ``torch.is_tensor(x)`` and ``hasattr(x, "name")`` are answered as for the
value itself. ``type(x)`` cannot be: the graph is compared with the model for its sake, see
`agreement`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["TensorProxy", "asked_by_user"]

_MACHINERY = ("torch", "fxprune")
_BETWEEN = ("abc", "typing", "functools")
"""Modules of Python that ask for somebody else."""


def asked_by_user() -> bool:
    """Return whether code that is neither torch's nor ours asks the caller for its class."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") in _BETWEEN and frame.f_back is not None:
        frame = frame.f_back
    if frame.f_code is torch.is_tensor.__code__:
        return True
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] not in _MACHINERY


class TensorProxy(fx.Proxy):
    """A traced value that is taken for a tensor."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """The type that user code gets to see."""
        return Tensor if asked_by_user() else type(self)

    def __getattr__(self, k: str) -> Any:
        """Trace the attributes that tensors have; others do not exist."""
        if not hasattr(Tensor, k):
            raise AttributeError(f"'Tensor' object has no attribute {k!r}")
        return super().__getattr__(k)
