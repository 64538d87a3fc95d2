"""Run an operator of a library on meta tensors, also where the library tells nothing of shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune._compat import op_name
from fxprune.analysis.layouts import run_remembering
from fxprune.inputs import map_tensors

__all__ = ["run_operator"]


def run_operator(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what an operator makes of meta tensors.

    An operator that is not torch's own and has no meta kernel is run once on zeros, for the shapes
    of what it returns.
    """
    try:
        return run_remembering(func, args, kwargs)
    except RuntimeError:  # NotImplementedError is one
        if op_name(func).startswith("aten::"):
            raise
    zeros_args, zeros_kwargs = map_tensors((args, kwargs), _zeros)
    return map_tensors(
        func(*zeros_args, **zeros_kwargs), lambda t: torch.empty_like(t, device="meta")
    )


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
