"""ImageNet from its folders, with the colours changed at random where a recipe asks for it."""

from __future__ import annotations

import dataclasses
import os

from torchvision import transforms

from fxprune.data import EpochData, image_folder
from fxprune.data.files import ImageFiles

__all__ = ["imagenet"]

_JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
"""Of the authors' code, main.py, for every network but MobileNetV2 (README.md, source a)."""


def imagenet(
    path: str | os.PathLike[str], size: int = 224, seed: int = 0, jitter: bool = False
) -> EpochData[ImageFiles]:
    """Return ImageNet, or any folder of its layout, as data for training and testing.

    Parameters
    ----------
    path, size, seed
        As for `fxprune.data.image_folder`.
    jitter : bool
        Whether to change brightness, contrast, saturation and hue of training images at random.

    Returns
    -------
    EpochData

    Raises
    ------
    ConfigError
        As from `fxprune.data.image_folder`.
    """
    data = image_folder(path, size, seed)
    if not jitter:
        return data
    *crop_and_flip, to_tensor, normalise = data.train.transform.transforms
    changed = transforms.Compose(
        [*crop_and_flip, transforms.ColorJitter(**_JITTER), to_tensor, normalise]
    )
    return dataclasses.replace(data, train=ImageFiles(data.train.samples, changed, seed))
