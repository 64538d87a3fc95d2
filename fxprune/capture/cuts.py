"""Calls that take a fixed stretch of an axis whose size varies."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.capture.shaped import ShapedProxy

__all__ = ["cuts"]

_CUTTING = (torch.split, torch.narrow, torch.functional.split, "split", "narrow")


def cuts(target: Any, args: Any) -> bool:
    """Return whether a call takes a fixed stretch of an axis whose size varies.

    Parameters
    ----------
    target : callable or str
        A function, or the name of a method.
    args : tuple
        Its positional arguments, as they are traced.
    """
    if not args or not isinstance(args[0], ShapedProxy) or not isinstance(args[0].twin[0], Tensor):
        return False
    sizes = list(zip(*(side.shape for side in args[0].twin), strict=True))
    if target in _CUTTING:
        return any(a != b for a, b in sizes[1:])
    if target is not operator.getitem:
        return False
    entries = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(e is Ellipsis for e in entries):
        after = len(entries) - entries.index(Ellipsis) - 1
        sizes, entries = sizes[len(sizes) - after :], entries[len(entries) - after :]
    taken = [e for e in entries if e is not None]
    return any(_is_cut(entry, *pair) for entry, pair in zip(taken, sizes, strict=False))


def _is_cut(entry: Any, one: int, other: int) -> bool:
    if not isinstance(entry, slice) or one == other:
        return False
    bounds = (entry.start, entry.stop, entry.step)
    if any(isinstance(b, fx.Proxy) for b in bounds):
        return False
    return len(range(*entry.indices(one))) == len(range(*entry.indices(other)))
