"""The table of gated twins: which function takes a mask in the place of which operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import fx

from fxprune.errors import ConfigError, InternalError

__all__ = ["find_twin", "spelling", "spelling_of", "twin"]

Function = Callable[..., Any]
_F = TypeVar("_F", bound=Function)
Key = tuple[str, Any]  # a node's op and target


@dataclass(frozen=True, slots=True)
class _Twin:
    function: Function
    fits: Callable[[fx.Node], bool] | None


_TWINS: dict[Key, _Twin] = {}
_SPELLINGS: dict[str, Key] = {}


def twin(*targets: Any, fits: Callable[[fx.Node], bool] | None = None) -> Callable[[_F], _F]:
    """Return a decorator that registers a gated twin for operators.

    The twin gets the node's arguments as they are, and ``mask``: the gates of the axes that the
    statistic runs over, broadcastable to the first argument; None while all gates are open. Hard
    gates are bool, soft ones floating-point numbers in [0, 1].

    Parameters
    ----------
    *targets : callable or str
        Functions and ATen overloads; a string is the name of a tensor method.
    fits : callable, optional
        Says of a node whether the twin can stand for it, when that depends on more than the target.

    Raises
    ------
    ConfigError
        If an operator already has a twin.
    """

    def decorate(function: _F) -> _F:
        for target in targets:
            key = ("call_method" if isinstance(target, str) else "call_function", target)
            if key in _TWINS:
                raise ConfigError(
                    f"{target} has two gated twins",
                    seen=f"{_TWINS[key].function.__name__} and {function.__name__}",
                    hint="name each spelling once",
                )
            _TWINS[key] = _Twin(function, fits)
            _SPELLINGS[spelling_of(*key)] = key
        return function

    return decorate


def find_twin(node: fx.Node) -> Function | None:
    """Return the gated twin of the function or method a node calls, or None if it has none."""
    found = _TWINS.get((node.op, node.target)) if node.op.startswith("call_") else None
    if found is None or "out" in node.kwargs or (found.fits is not None and not found.fits(node)):
        return None
    return found.function


def spelling_of(op: str, target: Any) -> str:
    """Return a name for what a node calls, which unlike some targets can be pickled."""
    if isinstance(target, str):
        return f"{op} {target}"
    module = getattr(target, "__module__", None) or "torch"
    return f"{op} {module}.{getattr(target, '_name', '') or target.__name__}"


def spelling(name: str) -> Key:
    """Return the op and target that `spelling_of` named.

    Raises
    ------
    InternalError
        If no operator with a twin has this name.
    """
    if name not in _SPELLINGS:
        raise InternalError(f"no operator with a gated twin is spelled {name!r}")
    return _SPELLINGS[name]
