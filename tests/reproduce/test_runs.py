"""Runs of recipes, whole and interrupted."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from reproduce_samples import (
    PARAMETERS,
    pack,
    pictures,
    write,
)

from fxprune.data import image_folder
from fxprune.errors import ConfigError
from fxprune.training.checkpoint import Checkpoints


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
