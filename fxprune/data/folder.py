"""A folder of image files, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.datasets.folder import (
    IMG_EXTENSIONS,
    has_file_allowed_extension,
    make_dataset,
)

from fxprune.data.epochs import EpochData
from fxprune.data.files import ImageFiles, augmenting, centring
from fxprune.data.split import stratified
from fxprune.errors import ConfigError
from fxprune.inputs import check_count

__all__ = ["image_folder"]

_TEST_SHARE = 0.2
_TEST_FOLDERS = ("val", "test")
_SHOWN = 5  # names in an error message
_LAYOUT = "the folder holds train/CLASS/*.png and val/CLASS/*.png (or test), or CLASS/*.png"

_Samples = list[tuple[str, int]]  # files and classes


def image_folder(
    path: str | os.PathLike[str], size: int = 224, seed: int = 0
) -> EpochData[ImageFiles]:
    """Return a folder of image files as data for training and testing.

    Parameters
    ----------
    path : path
        Holds ``train/CLASS/*.png`` and ``val/CLASS/*.png``, or ``test`` where there is no ``val``;
        the layout of torchvision's ``ImageFolder``, with its file types. Where ``path`` holds the
        folders of the classes directly, a fifth of every class is for testing.
    size : int
        Height and width in pixels. Above 64 the usual transforms of ImageNet are used, up to 64
        those of CIFAR.
    seed : int
        Of the crops and flips of training images, and of the split where there is none. At least 0.

    Returns
    -------
    EpochData
        Training images are cropped and flipped at random, test images resized and cropped in the
        centre; ImageNet's mean and standard deviation are taken out, classes are sorted by name.
        Torch's global random state is not touched, neither now nor when images are read.

    Raises
    ------
    ConfigError
        When there is no such folder, it holds fewer than two classes, a class has no image (or just
        one where a fifth is to be split off), the classes for training and testing differ, the
        first test image cannot be read, or `size` or `seed` is not such an integer. Reading any
        other damaged image raises it as well.
    """
    check_count("size", size)
    check_count("seed", seed, least=0)
    root = _existing(path)
    classes, train, test = (
        _split_by_folder(root) if _has_parts(root) else _split_at_random(root, seed)
    )
    test_files = ImageFiles(test, centring(size), seed)
    return EpochData(
        train=ImageFiles(train, augmenting(size), seed),
        test=test_files,
        classes=classes,
        example=test_files[0][0][None],
    )


def _existing(path: str | os.PathLike[str]) -> Path:
    root = Path(path)
    if not root.is_dir():
        raise ConfigError(
            "There is no such folder of images.",
            where=str(root),
            seen="a file" if root.exists() else "nothing",
            hint=_LAYOUT,
        )
    return root


def _has_parts(root: Path) -> bool:
    """Tell whether the classes are one level down; a class may be called ``train`` as well."""
    parts = [root / name for name in ("train", *_TEST_FOLDERS)]
    return any(_folders(part) for part in parts if part.is_dir())


def _split_by_folder(root: Path) -> tuple[tuple[str, ...], _Samples, _Samples]:
    train, tests = root / "train", [root / name for name in _TEST_FOLDERS]
    test = next((folder for folder in tests if folder.is_dir()), None)
    if test is None or not train.is_dir():
        raise ConfigError(
            "There must be images to train with and images to test with.",
            where=str(root),
            seen="a folder 'train' only" if test is None else f"a folder {test.name!r} only",
            hint=f"{_LAYOUT}; to split one folder at random pass the folder itself",
        )
    classes, test_classes = _classes(train), _classes(test)
    if classes != test_classes:
        raise ConfigError(
            "The classes for training and for testing differ.",
            where=str(root),
            seen=(
                f"only in train: {_some(set(classes) - set(test_classes))}; "
                f"only in {test.name}: {_some(set(test_classes) - set(classes))}"
            ),
            hint="both need the same folders",
        )
    return classes, _samples(train, classes, 1), _samples(test, classes, 1)


def _split_at_random(root: Path, seed: int) -> tuple[tuple[str, ...], _Samples, _Samples]:
    classes = _classes(root)
    samples = _samples(root, classes, 2)
    labels = torch.tensor([label for _, label in samples])
    generator = torch.Generator().manual_seed(seed)
    # Sorted, as the images of folders that are split already are.
    train, test = (
        [samples[i] for i in rows.sort().values.tolist()]
        for rows in stratified(labels, _TEST_SHARE, generator)
    )
    return classes, train, test


def _folders(folder: Path) -> list[str]:
    """List the folders inside, sorted; hidden ones are other programs' notes."""
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _classes(folder: Path) -> tuple[str, ...]:
    names = _folders(folder)
    if len(names) < 2:
        raise ConfigError(
            "A folder of images needs at least two classes, each a folder of its own.",
            where=str(folder),
            seen=f"one class: {names[0]!r}" if names else "no class",
            hint=_LAYOUT,
        )
    return tuple(names)


def _samples(folder: Path, classes: Sequence[str], least: int) -> _Samples:
    """List files and classes, sorted; every class needs at least `least` images."""
    index = {name: label for label, name in enumerate(classes)}
    samples: _Samples = make_dataset(str(folder), index, is_valid_file=_is_image, allow_empty=True)
    counts = [0] * len(classes)
    for _, label in samples:
        counts[label] += 1
    poor = [name for name, count in zip(classes, counts, strict=True) if count < least]
    if poor:
        raise ConfigError(
            f"Every class needs at least {least} image{'s' if least > 1 else ''} here.",
            where=str(folder),
            seen=f"fewer in {_some(poor)}",
            hint=f"images are files that end in {', '.join(IMG_EXTENSIONS)}",
        )
    return samples


def _is_image(path: str) -> bool:
    # Some systems keep notes on x.png in a hidden ._x.png.
    shown = not os.path.basename(path).startswith(".")
    return shown and has_file_allowed_extension(path, IMG_EXTENSIONS)


def _some(names: Sequence[str] | set[str]) -> str:
    listed = ", ".join(sorted(names)[:_SHOWN]) or "none"
    return listed if len(names) <= _SHOWN else f"{listed} and {len(names) - _SHOWN} more"
