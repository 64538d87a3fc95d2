"""Real data that needs no download: scikit-learn's bundled handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.errors import ConfigError
from fxprune.inputs import check_count

__all__ = ["Digits", "digits"]

_TEST_SHARE = 0.2
_CHANNELS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Digits:
    """1797 grey images of handwritten digits, split for training and testing.

    Attributes
    ----------
    train_images : Tensor, shape (1438, 3, size, size), float32
        Mean 0 and standard deviation 1 over all of them; the three channels are equal.
    train_labels : Tensor, shape (1438,), int64
        The digits, 0 to 9.
    test_images : Tensor, shape (359, 3, size, size), float32
        Standardised with the mean and standard deviation of the training images.
    test_labels : Tensor, shape (359,), int64
        The digits, 0 to 9.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(size: int = 32, seed: int = 0) -> Digits:
    """Return scikit-learn's bundled digits as image tensors.

    Parameters
    ----------
    size : int
        Height and width in pixels; the 8 by 8 originals are resized bilinearly.
    seed : int
        Decides which fifth of every class is for testing, and the order of the images.

    Returns
    -------
    Digits
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
    train, test = _split(labels, torch.Generator().manual_seed(seed))
    deviation, mean = torch.std_mean(images[train], correction=0)
    images = ((images - mean) / deviation).repeat(1, _CHANNELS, 1, 1)
    return Digits(images[train], labels[train], images[test], labels[test])


def _split(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the indices for training and testing; every class gives the same share to testing."""
    train, test = [], []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.randperm(len(members), generator=generator)]
        held_out = round(_TEST_SHARE * len(members))
        test.append(members[:held_out])
        train.append(members[held_out:])
    shuffled = (
        part[torch.randperm(len(part), generator=generator)]
        for part in (torch.cat(train), torch.cat(test))
    )
    first, second = shuffled
    return first, second
