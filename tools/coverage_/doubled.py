"""Run models in float64 whose forward writes float32 into its code.

Such a model (RAFT makes its grid of coordinates with ``.float()``) does not run in float64, and in
float32 rounding hides errors. Here every float32 that the code asks for is a float64, in the
original and in all that is captured from it.
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


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def in_double(model: nn.Module, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Let float32 mean float64 while a model is compared, if it does not run in float64 else.

    Parameters
    ----------
    model : nn.Module
        In float64 and evaluation mode.
    inputs : tuple
        In float64.
    """
    try:
        with torch.no_grad():
            model(*inputs)
    except RuntimeError:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            with _Doubled():
                yield
        finally:
            torch.set_default_dtype(before)
    else:
        yield
