"""CIFAR-10 and CIFAR-100 from the files of the "python version", with the usual augmentation.

Read from a folder or out of the archive; nothing is downloaded and nothing unpacked. The files are
pickles, which can hold programs: what they may name is limited to what an array needs.

References
----------
.. [1] Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009;
   https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import codecs
import hashlib
import io
import logging
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from fxprune.data import EpochData
from fxprune.data.epochs import EpochImages
from fxprune.errors import ConfigError
from fxprune.inputs import check_count

__all__ = ["CifarImages", "cifar"]

_SIZE, _CHANNELS = 32, 3
_PADDING = 4  # on each side, before the crop
_KINDS: dict[str, Any] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
_LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}

_log = logging.getLogger("fxprune")

_Read = Callable[[str], bytes]  # from the name of a file to what it holds


class CifarImages(EpochImages):
    """Images in memory, standardised, for training shifted by up to 4 pixels and flipped.

    A shift and a flip depend on the seed, the epoch and the index of the image only.

    Parameters
    ----------
    images : uint8 Tensor, shape (n, 3, 32, 32)
    targets : int64 Tensor, shape (n,)
        Classes.
    mean, deviation : float32 Tensor, shape (3, 1, 1)
        Taken out of the images; in units of their pixels.
    seed : int, optional
        Of shifts and flips, at least 0; without it images stay as they are.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        mean: Tensor,
        deviation: Tensor,
        seed: int | None = None,
    ) -> None:
        super().__init__(len(targets))
        self.images = images
        self.targets = targets
        self.seed = seed
        self._mean = mean
        self._deviation = deviation

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if self.seed is not None:
            image = self._shifted(image, self.key(self.seed, index))
        return (image.float() - self._mean) / self._deviation, int(self.targets[index])

    def _shifted(self, image: Tensor, key: list[int]) -> Tensor:
        """Pad an image with black, crop it at random, and mirror every second one."""
        draw = np.random.default_rng(key)
        top, left = draw.integers(2 * _PADDING + 1, size=2).tolist()
        image = F.pad(image, (_PADDING,) * 4)[:, top : top + _SIZE, left : left + _SIZE]
        return image.flip(2) if draw.integers(2) else image


def cifar(
    name: Literal["cifar10", "cifar100"], path: str | os.PathLike[str], seed: int = 0
) -> EpochData[CifarImages]:
    """Read a CIFAR data set.

    Parameters
    ----------
    name : {"cifar10", "cifar100"}
        With the 100 fine classes, not the 20 coarse ones.
    path : path
        The folder ``cifar-10-batches-py`` or ``cifar-100-python``, or the archive
        ``cifar-10-python.tar.gz`` or ``cifar-100-python.tar.gz``, or the folder that holds one.
    seed : int
        Of the shifts and flips of training images, at least 0.

    Returns
    -------
    EpochData
        Each channel has the mean and standard deviation of the training images taken out. Torch's
        global random state is not touched, neither now nor when images are read.

    Raises
    ------
    ConfigError
        When the data is not there, or a file is damaged, foreign or of another data set.

    Warns
    -----
    A file that can be read but differs from the official one is logged as a warning.
    """
    if name not in _KINDS:
        raise ConfigError("The data set is 'cifar10' or 'cifar100'.", seen=repr(name))
    check_count("seed", seed, least=0)
    kind = _KINDS[name]
    root = Path(path)
    read = _reader(root, kind)
    meta_name: str = kind.meta["filename"]
    meta = _unpickled(read, meta_name, kind.meta["md5"], root)
    classes = _classes(meta.get(kind.meta["key"].encode()), root, meta_name)
    (train, train_labels), (test, test_labels) = (
        _part(read, files, _LABELS[name], len(classes), root)
        for files in (kind.train_list, kind.test_list)
    )
    mean, deviation = _statistics(train)
    if not bool((deviation > 0).all()):
        raise ConfigError("The training images are all of one colour.", where=str(root))
    held = CifarImages(test, test_labels, mean, deviation)
    return EpochData(
        train=CifarImages(train, train_labels, mean, deviation, seed),
        test=held,
        classes=classes,
        example=held[0][0][None],
    )


# -- where the files are
def _reader(root: Path, kind: Any) -> _Read:
    """Return what reads a file of the data set, from a folder or an archive."""
    folder, archive, test = kind.base_folder, kind.filename, kind.test_list[0][0]
    for place in (root, root / folder):
        if (place / test).is_file():
            return partial(_from_folder, place)
    for file in (root, root / archive):
        if file.is_file():
            return _from_archive(file, folder)
    raise ConfigError(
        f"There is no {kind.__name__} here.",
        where=str(root),
        seen="a folder without it" if root.is_dir() else "nothing",
        hint=f"give the folder that holds {folder} or {archive}; the archive is at {kind.url}",
    )


def _from_folder(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise _unreadable(folder / name, error) from error


def _from_archive(file: Path, folder: str) -> _Read:
    """Read an archive once, without unpacking it to the disk."""
    held = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None:
                    held[member.name.removeprefix("./")] = content.read()
    # What tarfile and the decompressors raise for damaged files.
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise _unreadable(file, error) from error

    def read(name: str) -> bytes:
        if f"{folder}/{name}" not in held:
            raise ConfigError(
                "The archive lacks a file of the data set.",
                where=str(file),
                seen=f"no {folder}/{name}",
                hint="is it the archive of the other CIFAR, or not the python version?",
            )
        return held[f"{folder}/{name}"]

    return read


# -- what the files hold
def _part(
    read: _Read, files: Sequence[Sequence[str]], key: bytes, n_classes: int, root: Path
) -> tuple[Tensor, Tensor]:
    """Return images, (n, 3, 32, 32), and labels, (n,), of the files for training or testing."""
    images, labels = [], []
    for name, digest in files:
        content = _unpickled(read, name, digest, root)
        pixels, classes = content.get(b"data"), content.get(key)
        if not (
            isinstance(pixels, np.ndarray)
            and pixels.dtype == np.uint8
            and pixels.shape == (len(pixels), _CHANNELS * _SIZE * _SIZE)
        ):
            raise _foreign(root, name, "'data' is not an array of n x 3072 bytes")
        if not (
            isinstance(classes, list)
            and len(classes) == len(pixels)
            and all(type(label) is int and 0 <= label < n_classes for label in classes)
        ):
            what = f"{key.decode()!r} is not one class below {n_classes} for each image"
            raise _foreign(root, name, what)
        images.append(torch.from_numpy(pixels).view(-1, _CHANNELS, _SIZE, _SIZE))
        labels += classes
    if not labels:
        raise _foreign(root, files[0][0], "no image")
    return torch.cat(images), torch.tensor(labels)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, exact, from counts of pixel values."""
    counts = torch.stack([torch.bincount(c.flatten(), minlength=256) for c in images.unbind(1)])
    shares = counts / counts.sum(1, dtype=torch.float64, keepdim=True)
    values = torch.arange(256, dtype=torch.float64)
    mean = (shares * values).sum(1, keepdim=True)
    deviation = (shares * (values - mean) ** 2).sum(1, keepdim=True).sqrt()
    return mean.float().view(-1, 1, 1), deviation.float().view(-1, 1, 1)


def _classes(names: object, root: Path, file: str) -> tuple[str, ...]:
    if not (isinstance(names, list) and names and all(isinstance(n, bytes | str) for n in names)):
        raise _foreign(root, file, "no list of the names of classes")
    return tuple(n if isinstance(n, str) else n.decode("utf-8", "replace") for n in names)


def _unpickled(read: _Read, name: str, digest: str, root: Path) -> Mapping[bytes, Any]:
    raw = read(name)
    try:
        content = _Plain(io.BytesIO(raw), encoding="bytes").load()
    # What unpickling raises for damaged files.
    except (
        *(pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError),
        *(AttributeError, ImportError, OverflowError, MemoryError),
    ) as error:
        raise _unreadable(root, error, name) from error
    if not isinstance(content, dict):
        raise _foreign(root, name, f"a {type(content).__name__}")
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != digest:
        _log.warning("%s of %s is not the official file: its MD5 sum differs", name, root)
    # Written again by a Python of our days, keys are text.
    return {key.encode() if isinstance(key, str) else key: v for key, v in content.items()}


class _Plain(pickle.Unpickler):
    """Reads data and numpy arrays of it; no other function is ever called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what an array is made with, by the names of old and new versions of numpy."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            module = "numpy"
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no such file needs")
        return _ALLOWED[module, name]


def _dtype(kind: Any, align: Any = False, copy: Any = False) -> np.dtype[Any]:
    # The official files give numbers for these truth values, which numpy 2.4 deprecated.
    dtype: np.dtype[Any] = np.dtype(kind, align=bool(align), copy=bool(copy))
    return dtype


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "_reconstruct"): np.empty(0).__reduce__()[0],  # numpy keeps it private
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): codecs.encode,  # bytes, as Python 3 writes them for Python 2
}


def _unreadable(path: Path, error: Exception, name: str = "") -> ConfigError:
    return ConfigError(
        "A file of the data set cannot be read.",
        where=f"{path}: {name}" if name else str(path),
        seen=f"{type(error).__name__}: {error}",
        hint="it is damaged or not of this data set: download it again",
    )


def _foreign(path: Path, name: str, seen: str) -> ConfigError:
    return ConfigError(
        "A file is not what CIFAR's python version holds.",
        where=f"{path}: {name}",
        seen=seen,
        hint="is it the other CIFAR, or a version for another language?",
    )
