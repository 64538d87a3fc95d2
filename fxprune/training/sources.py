"""From the data a caller gives to samples for training and testing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fxprune.data import ImageData
from fxprune.errors import ConfigError
from fxprune.modes import in_mode
from fxprune.training.batches import DatasetSamples, Samples, TensorSamples
from fxprune.training.loss import heads

__all__ = ["Datasets", "Sources", "check_classes", "open_sources"]


@runtime_checkable
class Datasets(Protocol):
    """Data that is loaded sample by sample, such as `fxprune.data.EpochData`.

    Attributes
    ----------
    train, test : Dataset
        With a length; each item is an image tensor of shape (3, height, width) and an int.
    n_classes : int
    example : Tensor, shape (1, 3, height, width)
    """

    @property
    def train(self) -> Dataset[Any]:
        """Samples for training."""

    @property
    def test(self) -> Dataset[Any]:
        """Samples for testing."""

    @property
    def n_classes(self) -> int:
        """Number of classes."""

    @property
    def example(self) -> Tensor:
        """One image."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What a run trains and tests on.

    Attributes
    ----------
    train, test : Samples
    example : Tensor, shape (1, 3, height, width)
    n_classes : int
    """

    train: Samples
    test: Samples
    example: Tensor
    n_classes: int


def open_sources(data: ImageData | Datasets, seed: int, workers: int) -> Sources:
    """Make samples of data.

    Parameters
    ----------
    data : ImageData or Datasets
    seed : int
        For random transforms.
    workers : int
        Processes that load what is not in memory.

    Returns
    -------
    Sources

    Raises
    ------
    ConfigError
        If it is neither, there are too few samples, or a label is out of range.
    """
    if isinstance(data, ImageData):
        found = Sources(
            TensorSamples(data.train_images, data.train_labels),
            TensorSamples(data.test_images, data.test_labels),
            data.test_images[:1],
            data.n_classes,
        )
        for labels in (data.train_labels, data.test_labels):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < data.n_classes:
                raise ConfigError(
                    f"The labels must be 0 to {data.n_classes - 1}: n_classes is {data.n_classes}.",
                    seen=f"{int(labels.min())} to {int(labels.max())}",
                )
    elif isinstance(data, Datasets):
        found = Sources(
            DatasetSamples(data.train, seed, workers),
            DatasetSamples(data.test, seed, workers),
            data.example,
            data.n_classes,
        )
    else:
        raise ConfigError(
            "The 'data' argument must be an ImageData, or have train, test, n_classes and example.",
            seen=type(data).__name__,
            hint="fxprune.data.digits(), glyphs() or image_folder(path)",
        )
    if len(found.train) < 2 or len(found.test) < 1:
        raise ConfigError(
            "The data has too few samples.",
            seen=f"{len(found.train)} for training, {len(found.test)} for testing",
        )
    return found


def check_classes(network: nn.Module, example: Tensor, n_classes: int) -> None:
    """Check that a network returns one score per class.

    Parameters
    ----------
    network : nn.Module
        Run once, in eval mode.
    example : Tensor, shape (1, 3, height, width)
    n_classes : int

    Raises
    ------
    ConfigError
        If it does not.
    """
    with in_mode(network, training=False), torch.no_grad():
        scores = heads(network(example))[0]
    if scores.shape[1] != n_classes:
        raise ConfigError(
            f"The model returns {scores.shape[1]} scores, but the data has {n_classes} classes.",
            hint=f"build the model for {n_classes} classes (num_classes={n_classes} in torchvision "
            "and timm)",
        )
