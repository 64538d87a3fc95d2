"""Real data that needs no download: scikit-learn's bundled handwritten digits."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fxprune.data.images import ImageData, standardised
from fxprune.data.split import stratified
from fxprune.errors import ConfigError
from fxprune.inputs import check_count

__all__ = ["digits"]

_TEST_SHARE = 0.2
_CHANNELS = 3
_CLASSES = 10


def digits(size: int = 32, seed: int = 0) -> ImageData:
    """Return scikit-learn's bundled digits as image tensors.

    Parameters
    ----------
    size : int
        Height and width in pixels; the 8 by 8 originals are resized bilinearly.
    seed : int
        Decides which fifth of every class is for testing, and the order of the images.

    Returns
    -------
    ImageData
        1438 images for training and 359 for testing, of 10 classes; the three channels are equal.
        The same for the same `seed`; torch's global random state is not touched.

    Raises
    ------
    ConfigError
        When scikit-learn is not installed, or `size` is not an integer of at least 1.
    """
    check_count("size", size)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "The digits data set needs scikit-learn, which is not installed.",
            hint="pip install 'fxprune[demo]'",
        ) from error
    bunch = load_digits()
    labels = torch.from_numpy(bunch.target).long()
    images = torch.from_numpy(bunch.images).float()[:, None]
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    train, test = stratified(labels, _TEST_SHARE, torch.Generator().manual_seed(seed))
    parts = standardised(images[train], images[test])
    train_images, test_images = (part.repeat(1, _CHANNELS, 1, 1) for part in parts)
    return ImageData(train_images, labels[train], test_images, labels[test], _CLASSES)
