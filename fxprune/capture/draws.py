"""Random numbers that a forward draws while it is captured: they would be constants."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import fx

__all__ = ["no_draws"]


@contextmanager
def no_draws() -> Iterator[None]:
    """Refuse a forward that draws random numbers outside of the graph.

    Raises
    ------
    torch.fx.proxy.TraceError
        If torch's, numpy's or Python's random numbers went on inside of the block.
    """
    tensors, python, arrays = torch.get_rng_state(), random.getstate(), np.random.get_state()
    yield
    same = (
        torch.equal(tensors, torch.get_rng_state())
        and python == random.getstate()
        and all(map(np.array_equal, arrays, np.random.get_state()))
    )
    if not same:
        raise fx.proxy.TraceError("the forward draws random numbers on its own")
