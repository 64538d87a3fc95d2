"""Remember what operators make of meta tensors, so that equal layers cost one run.

torch works out the results of many operators (norms, matrix products, activations) in Python, a
millisecond or more for each. What an operator without side effects returns on meta tensors depends
on nothing but the layouts of its tensors and its other arguments, and a model repeats its layers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._compat import DispatchMode, OpOverload, is_mutable, storage_key
from fxprune.analysis.op import flat_tensors

__all__ = ["RememberedLayouts", "run_remembering"]

_META = torch.device("meta")
_LIMIT = 1 << 14  # entries; a model has a few hundred
_PLAIN = (
    *(int, float, bool, str, type(None)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
_Result = _Layout | tuple[type, tuple[_Layout, ...]]

_known: dict[Any, _Result] = {}


class RememberedLayouts(DispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators on meta tensors by `run_remembering`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run_remembering(func, args, kwargs or {})


def run_remembering(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return ``func(*args, **kwargs)``, without running it where its result is known.

    Parameters
    ----------
    func : OpOverload
        Anything else, and what writes to its arguments or returns views of them, is run.
    args, kwargs
        Its arguments. Where any tensor among them is not a plain one on the meta device, it is run.
    """
    if not _is_fresh(func):
        return func(*args, **kwargs)
    try:
        key = (func, torch.get_default_dtype(), _part(args), _part(kwargs))
    except TypeError:
        return func(*args, **kwargs)
    known = _known.get(key)
    if known is not None:
        return _made(known)
    out = func(*args, **kwargs)
    found = _result(out, flat_tensors([args, kwargs]))
    if found is not None:
        if len(_known) >= _LIMIT:
            _known.clear()
        _known[key] = found
    return out


@functools.cache
def _is_fresh(func: Any) -> bool:
    """Return whether an operator is torch's own and returns nothing but new tensors."""
    return (
        isinstance(func, OpOverload)
        and func.namespace == "aten"
        and not is_mutable(func)
        and all(returned.alias_info is None for returned in func._schema.returns)
    )


def _part(value: Any) -> Any:
    """Return what of an argument decides about results.

    Raises
    ------
    TypeError
        If that is more than layouts and plain values.
    """
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or value.device != _META:
            raise TypeError
        return _layout(value)
    if isinstance(value, (list, tuple)):
        return tuple([_part(v) for v in value])
    if isinstance(value, dict):
        return tuple([(k, _part(v)) for k, v in value.items()])
    if type(value) not in _PLAIN:
        raise TypeError
    return type(value), value  # 1, 1.0 and True are one key otherwise


def _layout(tensor: Tensor) -> _Layout:
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
        raise TypeError
    return tensor.shape, tensor.stride(), tensor.dtype


def _result(out: Any, given: list[Tensor]) -> _Result | None:
    """Return what to remember, or None if it is more than the layouts of new plain tensors."""
    tensors = [out] if isinstance(out, Tensor) else out
    if type(tensors) not in (list, tuple) or not all(type(t) is Tensor for t in tensors):
        return None
    if any(t.device != _META or t.storage_offset() for t in tensors):
        return None
    memory = {storage_key(t) for t in tensors}
    if len(memory) < len(tensors) or not memory.isdisjoint(map(storage_key, given)):
        return None
    try:
        layouts = tuple([_layout(t) for t in tensors])
    except TypeError:
        return None
    return layouts[0] if isinstance(out, Tensor) else (type(out), layouts)


def _made(known: _Result) -> Any:
    if len(known) == 3:
        return _empty(known)
    kind, layouts = known
    return kind(_empty(layout) for layout in layouts)


def _empty(layout: _Layout) -> Tensor:
    shape, stride, dtype = layout
    return torch.empty_strided(shape, stride, dtype=dtype, device=_META)
