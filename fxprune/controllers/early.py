"""Runs that end before their masks were trained with."""

from __future__ import annotations

import warnings

__all__ = ["EarlyFinishWarning", "warn_early"]


class EarlyFinishWarning(UserWarning):
    """A run was finished before its masks had been fixed and trained with."""


def warn_early(done: int, steps: int) -> None:
    """Warn the caller of a controller's ``finish`` that so many of its steps were done."""
    warnings.warn(
        f"The run was finished after {done} of {steps} steps, before its masks were fixed: the "
        "compact model will need fine-tuning.",
        EarlyFinishWarning,
        stacklevel=3,
    )
