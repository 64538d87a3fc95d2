"""What the tests of the recipes share: facts, and files as the authors of CIFAR made them.

Those were pickled by Python 2, with its strings and its numpy.
"""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1] / "tools" / "reproduce"
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
N_TRAIN, N_TEST = 40, 8
PARAMETERS = {  # torchvision's documentation for ImageNet; He et al., table 6: 0.85 M for ResNet-56
    "cifar10-resnet18": 11_173_962,
    "cifar10-resnet34": 21_282_122,
    "cifar10-resnet56": 853_018,
    "cifar10-mobilenet_v2": 2_236_682,
    "cifar100-resnet18": 11_220_132,
    "cifar100-resnet34": 21_328_292,
    "cifar100-resnet56": 858_868,
    "cifar100-mobilenet_v2": 2_351_972,
    "imagenet-resnet34": 21_797_672,
    "imagenet-resnet50": 25_557_032,
    "imagenet-mobilenet_v2": 3_504_872,
}


def old_value(value) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"I01\n" if value else b"I00\n"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(old_value, value)) + b"t"
    if isinstance(value, list):
        return b"(" + b"".join(map(old_value, value)) + b"l"
    if isinstance(value, dict):
        return b"(" + b"".join(old_value(k) + old_value(v) for k, v in value.items()) + b"d"
    assert isinstance(value, np.ndarray)
    kind = (
        b"cnumpy\ndtype\n"
        + old_value((b"u1", 0, 1))
        + b"R"
        + old_value((3, b"|", None, None, None, -1, -1, 0))
        + b"b"
    )
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        + old_value((0,))
        + old_value(b"b")
        + b"tR"
    )
    state = (
        b"("
        + old_value(1)
        + old_value(value.shape)
        + kind
        + old_value(False)
        + old_value(value.tobytes())
        + b"t"
    )
    return empty + state + b"b"


def old_pickle(value) -> bytes:
    return b"\x80\x02" + old_value(value) + b"."


def pixels(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, 3072), dtype=np.uint8)


def contents(name: str, dump=old_pickle) -> dict[str, bytes]:
    """Return the files of a small CIFAR, by name."""
    if name == "cifar10":
        files = {
            "batches.meta": {b"label_names": [b"class %d" % i for i in range(10)], b"num_vis": 3072}
        }
        for i in range(6):
            n = N_TRAIN // 5 if i < 5 else N_TEST
            file = f"data_batch_{i + 1}" if i < 5 else "test_batch"
            labels = [(i + j) % 10 for j in range(n)]
            files[file] = {b"batch_label": b"one", b"data": pixels(n, i), b"labels": labels}
    else:
        files = {"meta": {b"fine_label_names": [b"class %d" % i for i in range(100)]}}
        for seed, (file, n) in enumerate((("train", N_TRAIN), ("test", N_TEST))):
            fine = [7 * j % 100 for j in range(n)]
            coarse = [j % 20 for j in range(n)]
            files[file] = {b"data": pixels(n, seed), b"fine_labels": fine, b"coarse_labels": coarse}
    return {file: dump(held) for file, held in files.items()}


def write(root: Path, name: str, files: dict[str, bytes] | None = None) -> Path:
    folder = root / FOLDERS[name]
    folder.mkdir(parents=True)
    for file, raw in (contents(name) if files is None else files).items():
        (folder / file).write_bytes(raw)
    return root


def pack(path: Path, name: str, files: dict[str, bytes] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for file, raw in (contents(name) if files is None else files).items():
            member = tarfile.TarInfo(f"{FOLDERS[name]}/{file}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def pictures(dataset) -> torch.Tensor:
    return torch.stack([dataset[i][0] for i in range(len(dataset))])
