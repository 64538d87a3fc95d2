"""Taking over the state of a controller of another process."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from typing import Any

from fxprune.errors import LoadError

__all__ = ["take_over"]


def take_over(
    controller: Any,
    state: Mapping[str, Any],
    mine: Mapping[str, Any],
    restore: Callable[[Mapping[str, Any]], None],
) -> None:
    """Load a state into a controller that was made with the same arguments, or change nothing.

    Parameters
    ----------
    controller : object with a state_dict
    state : mapping
        With the arguments it was made with under ``"settings"``.
    mine : mapping
        Those of `controller`.
    restore : callable
        Takes a state over; it may stop half-way with an error.

    Raises
    ------
    LoadError
        If it is no such state, belongs to a run with other arguments, or is damaged.
    """
    kind = type(controller).__name__
    article = "an" if kind[0] in "AEIOU" else "a"
    try:
        theirs = dict(state["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"This is no state of {article} {kind}.", seen=f"{type(error).__name__}: {error}"
        ) from error
    differing = [key for key in mine if mine[key] != theirs.get(key)]
    if differing:
        key = differing[0]
        raise LoadError(
            "This state belongs to another run.",
            seen=f"{key} is {theirs.get(key)!r} there and {mine[key]!r} here",
            hint="make the controller with the arguments it had",
        )
    before = copy.deepcopy(controller.state_dict())
    try:
        restore(state)
    except LoadError:
        restore(before)
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        with contextlib.suppress(LoadError):  # the model may have shrunk since
            restore(before)
        raise LoadError(
            f"This state of {article} {kind} is damaged.",
            seen=f"{type(error).__name__}: {error}",
            hint="load an earlier checkpoint",
        ) from error
