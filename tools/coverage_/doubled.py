"""Run models in float64 whose forward writes float32 into its code.

Such a model (RAFT makes its grid of coordinates with ``.float()``, others compute attention in it)
does not run in float64, or rounds on the way, and rounding hides errors. Here every float32 that
the code asks for is a float64, in the original and in all that is captured from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = ["in_double"]


class _Doubled(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        given = {key: _double(value) for key, value in (kwargs or {}).items()}
        return func(*map(_double, args), **given)


class _Noting(TorchFunctionMode):
    """Notes whether any function returns float32."""

    found = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.found |= isinstance(out, torch.Tensor) and out.dtype is torch.float32
        return out


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_double(model: nn.Module, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Let float32 mean float64 while a model is compared, if it does not run in float64 throughout.

    Parameters
    ----------
    model : nn.Module
        In float64 and evaluation mode.
    inputs : tuple
        In float64.
    """
    if _stays_in_double(model, inputs):
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _Doubled():
            yield
    finally:
        torch.set_default_dtype(before)


def _stays_in_double(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    noting = _Noting()
    try:
        with torch.no_grad(), noting:
            model(*inputs)
    except RuntimeError:
        return False
    return not noting.found
