"""Where in the user's code something happened: neither torch's files nor ours."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

__all__ = ["is_users", "raised_at"]

_NOT_THE_USERS = (f"{torch.__path__[0]}/", f"{Path(__file__).parents[1]}/")


def is_users(file: str) -> bool:
    """Return whether a file is the user's."""
    return not file.startswith(_NOT_THE_USERS)


def raised_at(error: BaseException) -> tuple[str, str]:
    """Return the innermost place of the user's code that an error passed, and its line of text."""
    where, line = "", ""
    for frame in traceback.extract_tb(error.__traceback__):
        if is_users(frame.filename):
            where, line = f"{frame.filename}:{frame.lineno} in {frame.name}", frame.line or ""
    return where, line
