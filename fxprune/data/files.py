"""Image files as a torch data set, with augmentation that depends on nothing but its seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from fxprune.data.epochs import EpochImages
from fxprune.errors import ConfigError

__all__ = ["ImageFiles", "augmenting", "centring"]

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by channel
_SMALL = 64  # up to this size a random crop would lose what there is to see
_PADDING = 8  # small images are padded by this part of their size, as is usual for CIFAR
_MARGIN = 256 / 224  # large test images are resized to this multiple of the size, then cropped


class ImageFiles(EpochImages):
    """Image files with their classes, read when they are asked for.

    What is random in `transform` depends on the seed, the epoch and the index of the image only.
    Torch's global random state stays as it was.

    Parameters
    ----------
    samples : sequence of (path, int)
        Files and their classes.
    transform : callable
        From an RGB image of PIL to a tensor; a transform of torchvision.
    seed : int
        At least 0.
    """

    def __init__(self, samples: Sequence[tuple[str, int]], transform: Any, seed: int) -> None:
        super().__init__(len(samples))
        self.samples = tuple(samples)
        self.transform = transform
        self.seed = seed

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = _read(path)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the generators of accelerators as well.
            sequence = np.random.SeedSequence(self.key(self.seed, index))
            torch.default_generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
            return self.transform(image), label


def augmenting(size: int) -> Any:
    """Return what training images go through: a random crop, a random flip, normalisation.

    Parameters
    ----------
    size : int
        Height and width of the result. Up to 64, images are resized, padded by an eighth and
        cropped back; larger ones get a crop of random size and shape, as is usual for ImageNet.

    Returns
    -------
    callable
        From an RGB image of PIL to a float tensor of shape (3, size, size).
    """
    if size <= _SMALL:
        crop = [*_fit(size, size), transforms.RandomCrop(size, padding=size // _PADDING)]
    else:
        crop = [transforms.RandomResizedCrop(size)]
    return transforms.Compose([*crop, transforms.RandomHorizontalFlip(), *_to_tensor()])


def centring(size: int) -> Any:
    """Return what test images go through: resized, cropped in the centre, normalised.

    Parameters
    ----------
    size : int
        Height and width of the result. Up to 64, nothing is cropped off the shorter side; larger
        images lose an eighth of it, as is usual for ImageNet.

    Returns
    -------
    callable
        From an RGB image of PIL to a float tensor of shape (3, size, size).
    """
    shorter = size if size <= _SMALL else round(size * _MARGIN)
    return transforms.Compose([*_fit(shorter, size), *_to_tensor()])


def _fit(shorter: int, size: int) -> list[Any]:
    return [transforms.Resize(shorter), transforms.CenterCrop(size)]


def _to_tensor() -> list[Any]:
    return [transforms.ToTensor(), transforms.Normalize(_MEAN, _DEVIATION)]


def _read(path: str | os.PathLike[str]) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    # What Pillow raises for damaged files, according to the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(
            "An image cannot be read.",
            where=str(path),
            seen=f"{type(error).__name__}: {error}",
            hint="replace the file or take it out of the folder",
        ) from error
