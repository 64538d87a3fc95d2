"""Images that are drawn anew every epoch, by seed, epoch and index alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxprune.inputs import check_count

__all__ = ["EpochData", "EpochImages"]

Images_co = TypeVar("Images_co", bound="EpochImages", covariant=True)


class EpochImages(Dataset[tuple[Tensor, int]]):
    """A torch data set whose randomness depends on the seed, the epoch and the index only.

    The number of loader workers, the order of reading and an interrupted run make no difference:
    what a subclass draws for an image, it draws from `key`.

    Parameters
    ----------
    n_images : int
    """

    def __init__(self, n_images: int) -> None:
        self._n_images = n_images
        # In shared memory, so that workers that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return self._n_images

    def set_epoch(self, epoch: int) -> None:
        """Choose the randomness of the images read from now on.

        Parameters
        ----------
        epoch : int
            At least 0.

        Raises
        ------
        ConfigError
            When it is not such an integer.
        """
        self._epoch.fill_(check_count("epoch", epoch, least=0))

    def key(self, seed: int, index: int) -> list[int]:
        """Return what seeds the generator of one image; the index may count from the end."""
        return [seed, int(self._epoch), range(self._n_images)[index]]


@dataclass(frozen=True, slots=True, eq=False)
class EpochData(Generic[Images_co]):
    """Images read when they are asked for, split for training and testing.

    Attributes
    ----------
    train : EpochImages
        A torch data set of (float32 tensor of shape (3, size, size), int): the training images,
        augmented at random.
    test : EpochImages
        The test images, always the same.
    classes : tuple of str
        Names; an image's class is an index into it.
    example : Tensor, shape (1, 3, size, size), float32
        The first test image.
    """

    train: Images_co
    test: Images_co
    classes: tuple[str, ...]
    example: Tensor

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation of the training images; to be called before every epoch.

        Parameters
        ----------
        epoch : int
            At least 0. The same seed, epoch and index always give the same picture, with any
            number of loader workers, also when these persist.

        Raises
        ------
        ConfigError
            When it is not such an integer.
        """
        self.train.set_epoch(epoch)
