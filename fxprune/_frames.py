"""Errors that are kept while work goes on, without what their frames hold."""

from __future__ import annotations

import gc
import traceback

__all__ = ["forget_frames"]


def forget_frames(error: BaseException) -> None:
    """Free what an error that is kept for later holds: the model's copy that was worked on.

    Tracebacks keep their lines, without the local variables.

    Parameters
    ----------
    error : BaseException
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    gc.collect()  # what they held refers to itself: traced values, their tracer, its graph
