"""Operators that are analysed whole, before torch takes them apart.

torch runs a recurrent layer as a loop over time of a dozen small operators. Seen one by one, the
ties are lost (and a sequence of 500 steps costs 10 000 of them); its rule knows them all. And it
repeats positions by giving them a new axis, whose width looks like one that might be pruned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fxprune._compat import OpOverload, op_name
from fxprune.rules import recurrent, repeat

__all__ = ["WholeOperators"]

_SHAPES = {**recurrent.SHAPES, **repeat.SHAPES}
_FUNCTIONS = {getattr(torch, name.removeprefix("aten::")): name for name in _SHAPES}
_FUNCTIONS[torch.Tensor.repeat_interleave] = "aten::repeat_interleave"

Runner = Callable[[str, tuple[Any, ...], dict[str, Any], list[tuple[int, ...]]], Any]


class WholeOperators(TorchFunctionMode):
    """Gives calls of such operators, as functions or as ATen overloads, to `runner`.

    Parameters
    ----------
    runner : callable
        ``runner(name, args, kwargs, shapes)`` returns what the operator returns.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = runner

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = op_name(func) if isinstance(func, OpOverload) else self._function(func)
        shapes = _SHAPES[name](args, kwargs) if name in _SHAPES else None
        if shapes is None:
            return func(*args, **kwargs)
        return self._runner(name, args, kwargs, shapes)

    @staticmethod
    def _function(func: Any) -> str:
        try:
            return _FUNCTIONS.get(func, "")
        except TypeError:  # a target without a hash
            return ""
