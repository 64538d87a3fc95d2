"""Run operators and foreign code for shapes, also where these cannot run on meta tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune._compat import no_torch_modes, op_name
from fxprune.analysis.known import replaced
from fxprune.analysis.layouts import run_remembering
from fxprune.inputs import map_tensors

__all__ = ["run_blindly", "run_operator"]


def run_operator(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], known: Mapping[int, Tensor] | None
) -> Any:
    """Return what an operator makes of meta tensors.

    One that cannot tell the shapes of what it returns is run on the real values of its arguments,
    where these are all constants; one that is not torch's own is run once on zeros.

    Parameters
    ----------
    func : OpOverload
    args, kwargs
        With meta tensors.
    known : mapping, optional
        Real values of all tensors by ``id``, when they are known.
    """
    try:
        return run_remembering(func, args, kwargs)
    except RuntimeError:  # NotImplementedError is one
        if known is None and op_name(func).startswith("aten::"):
            raise
    if known is None:
        args, kwargs = map_tensors((args, kwargs), _zeros)
    else:
        args, kwargs = replaced(args, known), replaced(kwargs, known)
    return map_tensors(func(*args, **kwargs), _like)


def run_blindly(call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Return what foreign code makes of tensors of zeros, as meta tensors.

    For code that reads values, by numpy or a kernel of its own: nothing is known of its result but
    the shapes.

    Parameters
    ----------
    call : callable
        A function, or a real module; it is run once, on the CPU.
    args, kwargs
        With meta tensors.

    Raises
    ------
    Exception
        Whatever the code raises.
    """
    with no_torch_modes():
        real_args, real_kwargs = map_tensors((args, kwargs), _zeros)
        return map_tensors(call(*real_args, **real_kwargs), _like)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor
