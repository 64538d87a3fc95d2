"""The random states a training run has of its own: Python's, numpy's and torch's.

Layers such as dropout, and many data transforms, draw from global generators. A run seeds them,
carries their states in its checkpoints, and gives the caller's back at its end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["capture", "preserved", "restore", "seed_all"]

_BITS = 32


def seed_all(device: torch.device, *key: int) -> None:
    """Seed all global generators from a tuple of integers; different tuples are unrelated.

    Parameters
    ----------
    device : torch.device
        Its generator is among them if it is a CUDA device.
    *key : int
        At least 0.
    """
    python, numpy, *words = np.random.SeedSequence(key).generate_state(4).tolist()
    random.seed(python)
    np.random.seed(numpy)
    seed = (words[0] << _BITS | words[1]) >> 1
    # Not torch.manual_seed, which would seed the generators of all accelerators as well.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def capture(device: torch.device) -> dict[str, Any]:
    """Return the states of all global generators, as plain values and tensors.

    Parameters
    ----------
    device : torch.device
        Its generator is among them if it is a CUDA device.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": [
            name,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            position,
            has_gauss,
            cached,
        ],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: Mapping[str, Any], device: torch.device) -> None:
    """Set all global generators to what `capture` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Give all global generators their states back when the block ends.

    Parameters
    ----------
    device : torch.device
        Its generator is among them if it is a CUDA device.
    """
    # As they are, not by `capture`: this surrounds the loading of every single sample.
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
