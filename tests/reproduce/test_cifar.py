"""CIFAR as the recipes read it."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reproduce_samples import (
    FOLDERS,
    N_TEST,
    N_TRAIN,
    contents,
    old_pickle,
    old_value,
    pack,
    pictures,
    pixels,
    write,
)
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

from fxprune.errors import ConfigError
from fxprune.training.sources import open_sources


# -- CIFAR: what is read
def test_cifar10_is_read_as_it_was_written(cifar10) -> None:
    written = np.concatenate([pixels(N_TRAIN // 5, i) for i in range(5)])
    assert torch.equal(cifar10.train.images, torch.from_numpy(written).view(-1, 3, 32, 32))
    assert cifar10.train.targets.tolist() == [(i + j) % 10 for i in range(5) for j in range(8)]
    assert [label for _, label in cifar10.test] == [(5 + j) % 10 for j in range(N_TEST)]
    assert cifar10.classes == tuple(f"class {i}" for i in range(10))
    assert cifar10.n_classes == 10


def test_cifar100_has_its_fine_classes(tools, tmp_path) -> None:
    data = tools.cifar("cifar100", write(tmp_path, "cifar100"))
    assert data.train.targets.tolist() == [7 * j % 100 for j in range(N_TRAIN)]
    assert data.n_classes == 100


def test_channels_are_standardised_by_the_training_images(cifar10) -> None:
    train = cifar10.train.images.double()
    mean, deviation = (
        part.view(3, 1, 1) for part in (train.mean((0, 2, 3)), train.std((0, 2, 3), correction=0))
    )
    expected = (cifar10.test.images.double() - mean) / deviation
    assert torch.allclose(pictures(cifar10.test).double(), expected, atol=1e-5)
    assert torch.equal(cifar10.example, cifar10.test[0][0][None])
    assert cifar10.example.dtype is torch.float32


def test_the_folder_itself_and_archives_will_do(tools, cifar10, tmp_path) -> None:
    root = write(tmp_path / "a", "cifar10")
    (tmp_path / "b").mkdir()
    archive = pack(tmp_path / "b" / "cifar-10-python.tar.gz", "cifar10")
    for path in (root / FOLDERS["cifar10"], archive, archive.parent, str(archive)):
        data = tools.cifar("cifar10", path)
        assert torch.equal(data.train.images, cifar10.train.images)
        assert torch.equal(pictures(data.train), pictures(cifar10.train))
        assert torch.equal(data.test.targets, cifar10.test.targets)
    assert [p.name for p in archive.parent.iterdir()] == [archive.name]  # nothing was unpacked


def test_files_that_a_python_of_our_days_wrote_can_be_read(tools, cifar10, tmp_path) -> None:
    def dump(held) -> bytes:
        text = {key.decode(): v for key, v in held.items()}
        for names in text.keys() & {"label_names"}:
            text[names] = [name.decode() for name in text[names]]
        return pickle.dumps(text, protocol=2)

    data = tools.cifar("cifar10", write(tmp_path, "cifar10", contents("cifar10", dump)))
    assert torch.equal(data.train.images, cifar10.train.images)
    assert data.classes == cifar10.classes


def test_files_that_are_not_the_official_ones_are_told(
    tools, tmp_path, caplog, monkeypatch
) -> None:
    files = contents("cifar10")
    write(tmp_path, "cifar10", files)
    for names in ("train_list", "test_list"):
        known = [[n, hashlib.md5(files[n]).hexdigest()] for n, _ in getattr(CIFAR10, names)]
        monkeypatch.setattr(CIFAR10, names, known)
    tools.cifar("cifar10", tmp_path)
    assert caplog.messages == [
        f"batches.meta of {tmp_path} is not the official file: its MD5 sum differs"
    ]


# -- CIFAR: augmentation
def test_training_images_are_windows_of_padded_images(cifar10) -> None:
    seen = set()
    for epoch in range(6):
        cifar10.set_epoch(epoch)
        for i in range(len(cifar10.train)):
            image = (cifar10.train[i][0] * cifar10.train._deviation + cifar10.train._mean).round()
            padded = F.pad(cifar10.train.images[i], (4, 4, 4, 4)).float()
            windows = padded.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, 9, 9, 32, 32)
            found = [
                (top, left, mirrored)
                for mirrored in (False, True)
                for top, left in (windows == (image.flip(2) if mirrored else image)[:, None, None])
                .all(4)
                .all(3)
                .all(0)
                .nonzero()
                .tolist()
            ]
            assert len(found) == 1
            seen.add(found[0])
    assert {top for top, _, _ in seen} == {left for _, left, _ in seen} == set(range(9))
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_the_seed_the_epoch_and_the_index_decide(tools, tmp_path) -> None:
    write(tmp_path, "cifar10")
    one, other = (tools.cifar("cifar10", tmp_path, seed=s) for s in (0, 1))
    before = torch.get_rng_state()
    first = pictures(one.train)
    one.set_epoch(3)
    third = pictures(one.train)
    assert not torch.equal(first, third)
    assert not torch.equal(first, pictures(other.train))
    assert torch.equal(one.train[-1][0], third[-1])
    one.set_epoch(0)
    assert torch.equal(pictures(one.train), first)
    resumed = tools.cifar("cifar10", tmp_path, seed=0)  # as a second sitting would
    resumed.set_epoch(3)
    assert torch.equal(resumed.train[5][0], third[5])
    loaded = next(iter(DataLoader(resumed.train, batch_size=4, generator=torch.Generator())))[0]
    assert torch.equal(loaded, third[:4])
    assert torch.equal(torch.get_rng_state(), before)


def test_the_runtime_takes_the_data_and_its_epochs(cifar10) -> None:
    sources = open_sources(cifar10, seed=0, workers=0)
    rows = torch.arange(8)
    drawn = [next(iter(sources.train.batches([rows], epoch)))[0] for epoch in (0, 1, 0)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    tested = [next(iter(sources.test.batches([rows], epoch)))[0] for epoch in (0, 1)]
    assert torch.equal(*tested)


# -- CIFAR: what is wrong
def _change(**changed):
    """Write a CIFAR-10 whose third batch is another."""

    def write_changed(root: Path) -> Path:
        held = {b"data": pixels(8, 0), b"labels": [0] * 8}
        held |= {key.encode(): value for key, value in changed.items()}
        return write(root, "cifar10", contents("cifar10") | {"data_batch_3": old_pickle(held)})

    return write_changed


def _cut(root: Path) -> Path:
    files = contents("cifar10")
    return write(root, "cifar10", files | {"data_batch_2": files["data_batch_2"][:5000]})


def _cut_archive(root: Path) -> Path:
    root.mkdir()
    path = pack(root / "cifar-10-python.tar.gz", "cifar10")
    path.write_bytes(path.read_bytes()[:9000])
    return path


def _other_archive(root: Path) -> Path:
    root.mkdir()
    return pack(root / "cifar-10-python.tar.gz", "cifar100")


def _without(root: Path) -> Path:
    write(root, "cifar10")
    (root / FOLDERS["cifar10"] / "data_batch_4").unlink()
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root, r"There is no CIFAR10 here.\n.*\n  seen: nothing\n.*cifar-10-python.tar.gz"),
        (lambda root: write(root, "cifar100"), r"There is no CIFAR10 here.\n.*\n  seen: a folder"),
        (_without, r"cannot be read.\n.*data_batch_4\n  seen: FileNotFoundError"),
        (_cut, r"cannot be read.\n.*data_batch_2\n.*\n  next: .*download it again"),
        (_cut_archive, r"cannot be read.\n.*tar.gz\n"),
        (_other_archive, r"The archive lacks a file.*\n.*\n  seen: no cifar-10-batches-py/batches.meta"),
        (_change(data=b"no array"), "not what CIFAR's python version holds.\n.*data_batch_3"),
        (_change(data=pixels(8, 0)[:, :3000]), "'data' is not an array of n x 3072 bytes"),
        (_change(labels=[0] * 7), "'labels' is not one class below 10 for each image"),
        (_change(labels=[0] * 7 + [10]), "'labels' is not one class below 10"),
        (_change(labels=None), "'labels' is not one class below 10"),
        (lambda root: write(root, "cifar10", contents("cifar10") | {"test_batch": old_pickle([1])}), "seen: a list"),
        (lambda root: write(root, "cifar10", contents("cifar10") | {"batches.meta": old_pickle({})}), "no list of the names"),
    ],
)  # fmt: skip
def test_wrong_data_is_refused(tools, tmp_path, make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        tools.cifar("cifar10", make(tmp_path / "data"))


def test_images_of_one_colour_are_refused(tools, tmp_path) -> None:
    black = {b"data": np.zeros((2, 3072), np.uint8), b"fine_labels": [0, 1]}
    files = contents("cifar100") | {"train": old_pickle(black)}
    with pytest.raises(ConfigError, match="all of one colour"):
        tools.cifar("cifar100", write(tmp_path, "cifar100", files))
    empty = {b"data": np.zeros((0, 3072), np.uint8), b"fine_labels": []}
    (tmp_path / FOLDERS["cifar100"] / "test").write_bytes(old_pickle(empty))
    with pytest.raises(ConfigError, match="seen: no image"):
        tools.cifar("cifar100", tmp_path)


def test_a_program_in_a_file_is_not_run(tools, tmp_path) -> None:
    mark = tmp_path / "mark"
    program = b"cos\nmkdir\n(" + old_value(bytes(mark)) + b"tR."
    write(tmp_path, "cifar10", contents("cifar10") | {"data_batch_1": program})
    with pytest.raises(ConfigError, match=r"it names os\.mkdir, which no such file needs"):
        tools.cifar("cifar10", tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "seed", "message"),
    [("cifar20", 0, "'cifar10' or 'cifar100'"), ("cifar10", -1, "'seed' argument")],
)
def test_wrong_arguments_are_refused(tools, tmp_path, name, seed, message) -> None:
    with pytest.raises(ConfigError, match=message):
        tools.cifar(name, tmp_path, seed)
