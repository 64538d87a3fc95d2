"""Which samples each step sees, and how they are fetched.

The order is arithmetic: it follows from a seed and the number of the step, so that a run can go on
anywhere, and several processes can share one order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fxprune.training.random_state import preserved, seed_all

__all__ = ["Batch", "DatasetSamples", "Order", "Samples", "TensorSamples", "split_rows"]

Batch = tuple[Tensor, Tensor]
"""Images, shape (n, 3, height, width), and labels, shape (n,)."""

_CPU = torch.device("cpu")
_SPLIT, _ORDER, _SAMPLE = range(3)  # keep the uses of one seed apart


def split_rows(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split sample numbers into those for the weights and those held back.

    Parameters
    ----------
    n : int
        Samples there are.
    share : float
        Share to hold back; at least one sample is.
    seed : int

    Returns
    -------
    tuple of (int64 Tensor, int64 Tensor)
    """
    rows = torch.from_numpy(np.random.default_rng((seed, _SPLIT)).permutation(n))
    held = max(1, round(share * n))
    return rows[held:], rows[:held]


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """An endless sequence of batches: every epoch is a permutation of its own.

    What does not fill a batch at the end of an epoch is left out of this epoch.

    Attributes
    ----------
    rows : int64 Tensor, shape (n,)
        The samples to draw from.
    batch_size : int
        At most n.
    seed, stream : int
        Decide the permutations; orders of different streams are unrelated.
    """

    rows: Tensor
    batch_size: int
    seed: int
    stream: int = 0

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return len(self.rows) // self.batch_size

    def epoch(self, number: int) -> list[Tensor]:
        """Return the batches of an epoch, each the numbers of its samples."""
        key = (self.seed, _ORDER, self.stream, number)
        shuffled = self.rows[
            torch.from_numpy(np.random.default_rng(key).permutation(len(self.rows)))
        ]
        return list(torch.split(shuffled[: self.per_epoch * self.batch_size], self.batch_size))

    def batch(self, number: int) -> Tensor:
        """Return the batch of this number, counted over all epochs."""
        epoch, index = divmod(number, self.per_epoch)
        return self.epoch(epoch)[index]


class Samples(Protocol):
    """Samples that can be fetched by number."""

    def __len__(self) -> int:
        """Return how many there are."""

    def batches(self, groups: Sequence[Tensor], epoch: int = 0) -> Iterator[Batch]:
        """Yield one batch per group of sample numbers.

        Parameters
        ----------
        groups : sequence of int64 Tensor
        epoch : int
            Random transforms draw something else in every epoch, and the same in the same one.
        """


@dataclass(frozen=True, slots=True, eq=False)
class TensorSamples:
    """Samples that are in memory.

    Attributes
    ----------
    images : Tensor, shape (n, 3, height, width)
    labels : int64 Tensor, shape (n,)
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, groups: Sequence[Tensor], epoch: int = 0) -> Iterator[Batch]:
        """Yield slices; see `Samples.batches`."""
        for rows in groups:
            yield self.images[rows], self.labels[rows]


@dataclass(frozen=True, slots=True, eq=False)
class DatasetSamples:
    """Samples that a dataset loads one by one.

    Attributes
    ----------
    dataset : Dataset
        Gives an image tensor and a label.
    seed : int
        For random transforms.
    workers : int
        Processes that load, none by default; what is loaded does not depend on it.
    """

    dataset: Dataset[Any]
    seed: int = 0
    workers: int = 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def batches(self, groups: Sequence[Tensor], epoch: int = 0) -> Iterator[Batch]:
        """Yield what the dataset gives; see `Samples.batches`.

        A dataset with a method ``set_epoch``, such as `fxprune.data.files.ImageFiles`, is told the
        epoch and trusted to be random by epoch and sample alone. For others the global generators
        are seeded anew for every sample, which takes a fraction of a millisecond.
        """
        dataset = self.dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        else:
            dataset = _Seeded(dataset, self.seed, epoch)
        loader = DataLoader(
            dataset,
            batch_sampler=[rows.tolist() for rows in groups],
            # More processes than batches would only be started.
            num_workers=min(self.workers, len(groups)) if len(groups) > 1 else 0,
            generator=torch.Generator(),  # or it would draw from the global one
        )
        for images, labels in loader:
            yield images, torch.as_tensor(labels, dtype=torch.int64)


class _Seeded(Dataset[Any]):
    """A dataset whose random transforms depend on seed, epoch and sample only."""

    def __init__(self, dataset: Dataset[Any], seed: int, epoch: int) -> None:
        self._dataset = dataset
        self._key = (seed, _SAMPLE, epoch)

    def __getitem__(self, row: int) -> Any:
        with preserved(_CPU):
            seed_all(_CPU, *self._key, row)
            return self._dataset[row]
