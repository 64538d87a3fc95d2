"""A data set of images that fits into memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ImageData", "standardised"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageData:
    """Images of one size with their classes, split for training and testing.

    Attributes
    ----------
    train_images : Tensor, shape (n, 3, size, size), float32
        Mean 0 and standard deviation 1 over all of them.
    train_labels : Tensor, shape (n,), int64
        Classes, 0 to ``n_classes - 1``.
    test_images : Tensor, shape (m, 3, size, size), float32
        Standardised with the mean and standard deviation of the training images.
    test_labels : Tensor, shape (m,), int64
        Classes.
    n_classes : int
        Number of classes.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    n_classes: int


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Bring both parts to mean 0 and standard deviation 1 of the first.

    Parameters
    ----------
    train, test : Tensor
        Images of any shape.

    Returns
    -------
    tuple of (Tensor, Tensor)
        New tensors of the same shapes; one mean and one deviation for all channels.
    """
    deviation, mean = torch.std_mean(train, correction=0)
    return (train - mean) / deviation, (test - mean) / deviation
