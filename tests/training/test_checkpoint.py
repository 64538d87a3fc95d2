from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from fxprune.errors import ConfigError, LoadError
from fxprune.training.checkpoint import NAME, PREVIOUS, Checkpoints

MARKS = {"settings.lr": "0.1", "model.weight": "(3,) float32"}


def checkpoints(folder: Path, **marks: str) -> Checkpoints:
    return Checkpoints(folder, {**MARKS, **{f"settings.{k}": v for k, v in marks.items()}})


def write(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoints(folder).write({"stage": "ato", "done": step, "values": torch.arange(1000.0)})


def read(folder: Path) -> int | None:
    found = checkpoints(folder).read()
    return None if found is None else found["done"]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change one bit among the values, which torch.load does not notice."""
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.arange(1000.0).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(raw)
    torch.load(path, weights_only=True)


def replace_by_text(path: Path) -> None:
    path.write_text("no checkpoint")


def replace_by_weights(path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, path)


def replace_by_code(path: Path) -> None:
    torch.save({"stage": Path}, path)


def make_newer(path: Path) -> None:
    torch.save({**torch.load(path), "fxprune_training": 99}, path)


DAMAGE = [
    (truncate, "damaged or foreign"),
    (flip, "checksum"),
    (replace_by_text, "damaged or foreign"),
    (replace_by_weights, "foreign: a file of torch"),
    (replace_by_code, "damaged or foreign"),
    (make_newer, "of format 99"),
]


def test_the_newest_is_read_and_the_one_before_kept(tmp_path) -> None:
    assert read(tmp_path) is None
    write(tmp_path, 1)
    assert read(tmp_path) == 1
    write(tmp_path, 2, 3)
    assert read(tmp_path) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NAME]
    (tmp_path / NAME).unlink()  # as when killed between the renames
    assert read(tmp_path) == 2


@pytest.mark.parametrize(("damage", "why"), DAMAGE, ids=lambda d: getattr(d, "__name__", ""))
def test_a_bad_file_is_set_aside_and_the_one_before_taken(tmp_path, caplog, damage, why) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path / NAME)
    bad = (tmp_path / NAME).read_bytes()
    with caplog.at_level(logging.WARNING, "fxprune"):
        assert read(tmp_path) == 1
    assert NAME in caplog.text
    assert why in caplog.text
    assert "going on from checkpoint.prev.pt" in caplog.text
    assert (tmp_path / "checkpoint.bad-1.pt").read_bytes() == bad
    write(tmp_path, 2)
    assert read(tmp_path) == 2
    damage(tmp_path / NAME)
    assert read(tmp_path) == 1
    assert (tmp_path / "checkpoint.bad-2.pt").exists()


@pytest.mark.parametrize(("damage", "why"), DAMAGE, ids=lambda d: getattr(d, "__name__", ""))
def test_without_a_good_one_it_says_what_was_tried(tmp_path, damage, why) -> None:
    write(tmp_path, 1, 2)
    damage(tmp_path / NAME)
    truncate(tmp_path / PREVIOUS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LoadError, match="None of the run's checkpoints can be read") as caught:
        read(tmp_path)
    assert f"{NAME}: " in caught.value.seen
    assert why in caught.value.seen
    assert f"{PREVIOUS}: damaged" in caught.value.seen
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_run_is_refused_by_what_differs(tmp_path) -> None:
    write(tmp_path, 1, 2)
    with pytest.raises(LoadError, match="belongs to another run: settings.lr differs") as caught:
        checkpoints(tmp_path, lr="0.2").read()
    assert caught.value.seen == "settings.lr: 0.1 there, 0.2 here"
    many = dict.fromkeys("abcde", "1")
    with pytest.raises(LoadError, match="settings.a, settings.b, settings.c differ.") as caught:
        checkpoints(tmp_path, **many).read()
    assert "settings.a: nothing there, 1 here" in caught.value.seen
    assert "2 more" in caught.value.seen


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    write(tmp_path, 1, 2)
    with pytest.raises(AttributeError):
        checkpoints(tmp_path).write({"stage": "ato", "done": lambda: 0})
    assert read(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NAME]

    def full(state, path):
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ConfigError, match="The checkpoint cannot be written") as caught:
        write(tmp_path, 3)
    assert "No space left" in caught.value.seen
    assert read(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [PREVIOUS, NAME]
    with pytest.raises(ConfigError, match="absent.* cannot be written"):
        checkpoints(tmp_path / "absent").write({"stage": "ato"})


def test_drafts_of_a_killed_process_are_removed(tmp_path) -> None:
    write(tmp_path, 1)
    (tmp_path / f".{NAME}.abc").write_text("half")
    assert read(tmp_path) == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
