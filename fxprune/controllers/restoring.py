"""Going on from a controller's checkpoint: all of it is taken over, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from fxprune.errors import LoadError

__all__ = ["take_over"]


def take_over(
    kind: str,
    state: Mapping[str, Any],
    settings: Mapping[str, Any],
    capture: Callable[[], dict[str, Any]],
    restore: Callable[[Mapping[str, Any]], None],
) -> None:
    """Restore a state if it belongs to a run like this; leave everything as it is if not.

    Parameters
    ----------
    kind : str
        What it must be the state of, for messages.
    state : mapping
        With what `settings` were under ``"settings"``.
    settings : mapping
        What two runs must share to be one.
    capture : callable
        Returns the present state.
    restore : callable
        Takes a state over; it may stop half-way with an error.

    Raises
    ------
    LoadError
        If the state is of another run, or damaged.
    """
    try:
        theirs = dict(state["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(
            f"This is no state of {kind}.", seen=f"{type(error).__name__}: {error}"
        ) from error
    differing = [key for key in settings if settings[key] != theirs.get(key)]
    if differing:
        key = differing[0]
        raise LoadError(
            "This state belongs to another run.",
            seen=f"{key} is {theirs.get(key)!r} there and {settings[key]!r} here",
            hint="make the controller with the arguments it had",
        )
    before = copy.deepcopy(capture())
    try:
        restore(state)
    except LoadError:
        restore(before)
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        restore(before)
        raise LoadError(
            f"This state of {kind} is damaged.",
            seen=f"{type(error).__name__}: {error}",
            hint="load an earlier checkpoint",
        ) from error
