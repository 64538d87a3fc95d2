from __future__ import annotations

import dataclasses
import hashlib
import importlib
import io
import json
import pickle
import struct
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10

import fxprune
from fxprune.budget import check_budget
from fxprune.controllers.schedule import Schedule
from fxprune.data import image_folder
from fxprune.errors import ConfigError
from fxprune.training import TrainSettings
from fxprune.training.checkpoint import Checkpoints
from fxprune.training.sources import open_sources

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
SIZES = {
    "cifar10": (10, 32, 50_000),
    "cifar100": (100, 32, 50_000),
    "imagenet": (1000, 224, 1_281_167),
}


@pytest.fixture(scope="module")
def tools() -> Iterator[object]:
    """Return run.py; the modules beside it are its attributes by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        module = importlib.import_module("run")
        for name in ("cifar", "recipes", "imagenet", "networks"):
            patch.setattr(module, f"{name}_module", importlib.import_module(name), raising=False)
        yield module


# -- files as the authors of CIFAR made them: by Python 2, with its strings and its numpy
def _old(value) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"I01\n" if value else b"I00\n"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_old, value)) + b"t"
    if isinstance(value, list):
        return b"(" + b"".join(map(_old, value)) + b"l"
    if isinstance(value, dict):
        return b"(" + b"".join(_old(k) + _old(v) for k, v in value.items()) + b"d"
    assert isinstance(value, np.ndarray)
    kind = (
        b"cnumpy\ndtype\n"
        + _old((b"u1", 0, 1))
        + b"R"
        + _old((3, b"|", None, None, None, -1, -1, 0))
        + b"b"
    )
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        + _old((0,))
        + _old(b"b")
        + b"tR"
    )
    state = b"(" + _old(1) + _old(value.shape) + kind + _old(False) + _old(value.tobytes()) + b"t"
    return empty + state + b"b"


def old_pickle(value) -> bytes:
    return b"\x80\x02" + _old(value) + b"."


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


@pytest.fixture(scope="module")
def cifar10(tools, tmp_path_factory):
    return tools.cifar("cifar10", write(tmp_path_factory.mktemp("cifar10"), "cifar10"))


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
    program = b"cos\nmkdir\n(" + _old(bytes(mark)) + b"tR."
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


# -- ImageNet
@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Return two classes of images in the folders of ImageNet."""
    root = tmp_path_factory.mktemp("imagenet")
    for part, count in (("train", 10), ("val", 3)):
        for name in ("n01440764", "n01443537"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                seed = 100 * (part == "val") + 10 * (name == "n01440764") + i
                noise = np.random.default_rng(seed).integers(256, size=(40, 48, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / part / name / f"{i}.JPEG")
    return root


def test_jitter_changes_the_colours_of_training_images_only(tools, folders) -> None:
    plain, theirs = tools.imagenet(folders, 32), image_folder(folders, 32)
    assert torch.equal(pictures(plain.train), pictures(theirs.train))
    one, other = (tools.imagenet(folders, 32, jitter=True) for _ in range(2))
    assert torch.equal(pictures(one.test), pictures(theirs.test))
    assert torch.equal(one.example, theirs.example)
    first = pictures(one.train)
    assert not torch.isclose(first, pictures(theirs.train)).all(3).all(2).all(1).any()
    assert torch.equal(first, pictures(other.train))
    one.set_epoch(1)
    assert not torch.equal(first, pictures(one.train))
    assert pictures(tools.imagenet(folders, 96, jitter=True).train).shape == (20, 3, 96, 96)


# -- the table
@pytest.mark.parametrize(
    "name",
    # For CIFAR-100 only the last layer and the budget are others.
    [pytest.param(n, marks=pytest.mark.slow if "100" in n else ()) for n in PARAMETERS],
)
def test_a_recipes_network_has_its_size_and_can_meet_the_budget(tools, name) -> None:
    recipe = tools.find_recipe(name)
    classes, size, _ = SIZES[recipe.data]
    model = recipe.build(classes)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    gated = fxprune.auto_gate(model, torch.zeros(1, 3, size, size))
    macs = recipe.settings().macs
    check = check_budget(gated.plan, gated.cost_of, macs=macs, params=None, round_to=1)
    assert check == ("macs", macs)


def test_there_are_no_other_recipes(tools) -> None:
    assert list(tools.RECIPES) == list(PARAMETERS)


def test_every_value_is_cited_and_a_setting(tools) -> None:
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    named = {
        "macs",
        "epochs",
        "batch_size",
        "optimizer",
        "lr",
        "weight_decay",
        "schedule",
        "warm_up",
    }
    named |= {"label_smoothing", "every", "controller_lr", "held_back"}
    used = set()
    for recipe in tools.RECIPES.values():
        assert named <= recipe.cited.keys() <= fields
        assert (
            recipe.cited["optimizer"].value != "sgd"
            or {"momentum", "nesterov"} <= recipe.cited.keys()
        )
        assert {name: getattr(recipe.settings(), name) for name in recipe.cited} == {
            name: one.value for name, one in recipe.cited.items()
        }
        used |= {one.source for one in recipe.cited.values()}
    assert used == tools.SOURCES.keys()


def test_a_recipe_runs_the_papers_schedule(tools) -> None:
    for recipe in tools.RECIPES.values():
        settings, (_, _, images) = recipe.settings(), SIZES[recipe.data]
        steps = settings.epochs * (int(0.95 * images) // settings.batch_size)
        assert Schedule.for_run(steps) == Schedule(0.1, 0.2, 0.5)


def test_resnet34s_share_is_that_of_the_authors_command(tools) -> None:
    """Their 0.54 counts the convolutions of the blocks only."""
    model = tools.find_recipe("imagenet-resnet34").build(1000)
    example = torch.zeros(1, 3, 224, 224)
    total = tools.networks_module.count_macs(model, example)
    fixed = 3 * 64 * 49 * 112**2 + 1000 * 512  # the first layer and the last
    fixed += sum(a * 2 * a * (3136 // 4 ** (i + 1)) for i, a in enumerate((64, 128, 256)))
    share = (fixed + 0.54 * (total - fixed)) / total
    assert tools.find_recipe("imagenet-resnet34").settings().macs == pytest.approx(share, abs=5e-4)


def test_others_take_the_place_of_a_recipes_settings(tools) -> None:
    settings = tools.find_recipe("cifar10-resnet56").settings(epochs=2, amp=True)
    assert (settings.epochs, settings.amp, settings.batch_size) == (2, True, 128)


def test_the_list_is_that_of_the_readme(tools, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        tools.main(["--list"])
    assert left.value.code is None
    printed = capsys.readouterr().out
    readme = (ROOT / "README.md").read_text()
    table, _, legend = printed.partition("\n\na  ")
    assert table in readme
    assert legend.count("\n") == len(tools.SOURCES)
    for key in tools.SOURCES:
        assert f"| {key} | " in readme


# -- runs
def _thin(tools, monkeypatch, name: str, **changed) -> None:
    """Give a recipe a network that trains in a second, and other settings."""
    recipe = tools.RECIPES[name]
    cited = recipe.cited | {key: tools.recipes_module.Cited(v, "o") for key, v in changed.items()}
    build = partial(tools.networks_module.ResidualNet, (1, 1), (8, 16))
    thin = dataclasses.replace(recipe, build=build, cited=cited)
    monkeypatch.setitem(tools.RECIPES, name, thin)


def _outcome(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "compact.pt", weights_only=True)["state_dict"]
    assert state
    return state


def _check_run(out: Path, name: str, target: float, printed: str) -> None:
    found = json.loads((out / "result.json").read_text())
    assert found["recipe"] == name
    assert found["target"] == {"macs": target}
    assert found["compact"]["macs"] == pytest.approx(target * found["dense"]["macs"], rel=0.01)
    assert 0 <= found["compact"]["accuracy"] <= 1
    assert found["dense"]["accuracy"] is None
    assert found["onnx"] == str(out / "compact.onnx")
    assert (out / "compact.onnx").stat().st_size > 1000
    assert printed.startswith(f"{name}\n\n")
    assert str(out / "compact.onnx") in printed


def test_a_cifar_run_and_one_that_was_interrupted(tools, tmp_path, monkeypatch, capsys) -> None:
    _thin(tools, monkeypatch, "cifar100-resnet56", every=1, batch_size=8)
    data = str(write(tmp_path / "data", "cifar100"))
    command = [
        "cifar100-resnet56",
        "--data",
        data,
        "--epochs",
        "4",
        "--device",
        "cpu",
        "--seed",
        "3",
    ]
    torch.use_deterministic_algorithms(True)
    try:
        assert tools.main([*command, "--out", str(tmp_path / "whole")]) == 0
        _check_run(tmp_path / "whole", "cifar100-resnet56", 0.5, capsys.readouterr().out)

        write_checkpoint = Checkpoints.write

        def full_disk(self, state) -> None:
            if state["done"] > 8:
                raise ConfigError("The disk is full.")
            write_checkpoint(self, state)

        out = tmp_path / "parts"
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "write", full_disk)
            assert tools.main([*command, "--out", str(out)]) == 2
        assert "ConfigError: The disk is full." in capsys.readouterr().err
        assert not (out / "result.json").exists()
        assert tools.main([*command, "--out", str(out), "--resume"]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    whole, parts = _outcome(tmp_path / "whole"), _outcome(out)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())


def test_an_imagenet_run(tools, folders, tmp_path, monkeypatch, capsys) -> None:
    _thin(tools, monkeypatch, "imagenet-resnet50")
    command = ["imagenet-resnet50", "--data", str(folders), "--out", str(tmp_path), "--size", "32"]
    assert tools.main([*command, "--epochs", "3", "--device", "cpu", "--macs", "0.4"]) == 0
    _check_run(tmp_path, "imagenet-resnet50", 0.4, capsys.readouterr().out)


def test_a_cifar10_run_from_the_archive(tools, tmp_path, monkeypatch, capsys) -> None:
    _thin(tools, monkeypatch, "cifar10-resnet18")
    data = str(pack(tmp_path / "cifar-10-python.tar.gz", "cifar10"))
    command = ["cifar10-resnet18", "--data", data, "--out", str(tmp_path / "out"), "--epochs", "2"]
    assert tools.main([*command, "--device", "cpu"]) == 0
    _check_run(tmp_path / "out", "cifar10-resnet18", 0.2, capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_runs_of_the_real_networks(tools, folders, tmp_path, capsys, name) -> None:
    recipe = tools.find_recipe(name)
    if recipe.data == "imagenet":
        data, size = folders, ["--size", "64"]
    else:
        data, size = write(tmp_path / "data", recipe.data), []
    command = [name, "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "2", *size]
    assert tools.main([*command, "--device", "cpu"]) == 0
    _check_run(tmp_path / "out", name, recipe.settings().macs, capsys.readouterr().out)


def test_only_the_first_process_speaks(tools, folders, tmp_path, monkeypatch, capsys) -> None:
    class Found:
        def to_dict(self) -> dict[str, float]:
            return {"seconds": 1.0}

    monkeypatch.setattr(tools, "train", lambda *args, **options: Found())
    command = [
        "imagenet-mobilenet_v2",
        "--data",
        str(folders),
        "--out",
        str(tmp_path),
        "--size",
        "32",
    ]
    monkeypatch.setenv("RANK", "1")
    assert tools.main(command) == 0
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    assert tools.main(command) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == {
        "recipe": "imagenet-mobilenet_v2",
        "epochs": 300,
        "seconds": 1.0,
    }


def test_a_seed_decides_the_weights_and_leaves_the_global_one(
    tools, folders, tmp_path, monkeypatch
) -> None:
    given = []

    def spy(model, data, settings, out, resume):
        given.append((model, settings, resume))
        raise ConfigError("enough")

    monkeypatch.setattr(tools, "train", spy)
    before = torch.get_rng_state()
    for seed in ("1", "1", "2"):
        command = ["imagenet-mobilenet_v2", "--data", str(folders), "--out", str(tmp_path)]
        tools.main(
            [
                *command,
                "--size",
                "32",
                "--seed",
                seed,
                "--workers",
                "2",
                "--accumulate",
                "4",
                "--resume",
            ]
        )
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = (next(model.parameters()) for model, _, _ in given)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    settings = given[0][1]
    assert (settings.workers, settings.accumulate, settings.dense) == (2, 4, False)
    assert given[0][2] is True
    assert given[0][0].classifier[1].out_features == 2


@pytest.mark.parametrize(
    ("recipe", "more", "message"),
    [
        (
            "cifar10-vgg16",
            [],
            "There is no such recipe.\n  seen: cifar10-vgg16\n  next: one of cifar10-resnet18,",
        ),
        ("cifar10-resnet18", [], "There is no CIFAR10 here."),
        ("cifar10-resnet18", ["--size", "64"], "The images of CIFAR are 32x32"),
        ("imagenet-resnet50", [], "There is no such folder of images."),
    ],
)
def test_what_the_user_can_put_right_is_told(
    tools, tmp_path, capsys, recipe, more, message
) -> None:
    out = tmp_path / "out"
    command = [recipe, "--data", str(tmp_path / "none"), "--out", str(out), *more]
    assert tools.main(command) == 2
    assert f"ConfigError: {message}" in capsys.readouterr().err
    assert not out.exists()
