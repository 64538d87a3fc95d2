"""A run that is killed at any moment and resumed ends as one that never was."""

from __future__ import annotations

import csv
import dataclasses
import random
import time
from pathlib import Path

import pytest
import torch
from training.runs import (
    SETTINGS,
    data,
    deterministic,
    ends,
    net,
    processes,
    run_child,
    trained,
)

from fxprune.training import train
from fxprune.training.stage import Stage

SEED = 20


SHORT = dataclasses.replace(SETTINGS, epochs=3)  # 36 dense steps, 33 with the controller


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return trained(net(), data(), SHORT, tmp_path_factory.mktemp("short"))


@pytest.mark.parametrize("steps", [1, 15, 36, 41, 47, 60])
def test_stopped_in_any_phase_the_run_ends_the_same(tmp_path, short, monkeypatch, steps) -> None:
    """Before any checkpoint, within the dense run, at its end, and in the controller's phases."""
    settings = dataclasses.replace(SHORT, checkpoint_every=4)
    done = 0
    step = Stage._weight_step

    def stopping(self, *args):
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        return step(self, *args)

    monkeypatch.setattr(Stage, "_weight_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(net(), data(), settings, tmp_path)
    monkeypatch.setattr(Stage, "_weight_step", step)
    model = net()
    if steps > settings.checkpoint_every:  # weights are those of the checkpoint
        torch.nn.init.zeros_(model[0].weight)
    assert_same(trained(model, data(), settings, tmp_path, resume=True), short)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def start(out: Path, fatal_write: int = 0, moment: str = ""):
    step = processes.RawValue("i", 0)
    child = processes.Process(target=run_child, args=(out, step, fatal_write, moment))
    child.start()
    return child, step


def killed(out: Path, fatal_write: int, moment: str) -> None:
    child, _ = start(out, fatal_write, moment)
    child.join(300)
    assert child.exitcode == -9


def kill_after(out: Path, steps: int, delay: float) -> None:
    child, step = start(out)
    give_up = time.monotonic() + 300
    while step.value < steps and child.is_alive() and time.monotonic() < give_up:
        time.sleep(0.0005)
    time.sleep(delay)
    child.kill()
    child.join()
    assert child.exitcode == -9


def test_killed_at_random_moments_the_run_ends_the_same(tmp_path, whole) -> None:
    draw = random.Random(SEED)
    moments = [(draw.randrange(10, 40), 0.02 * draw.random()) for _ in range(3)]
    # Shown when the test fails.
    print(f"seed {SEED}: killed after these steps and seconds of each sitting: {moments}")  # noqa: T201
    kill_after(tmp_path, *moments[0])
    killed(tmp_path, 4, "within the file")
    kill_after(tmp_path, *moments[1])
    killed(tmp_path, 4, "between the renames")
    kill_after(tmp_path, *moments[2])
    assert not (tmp_path / "compact.onnx").exists()
    with deterministic():
        resumed = train(net(), data(), SETTINGS, tmp_path, resume=True)
    found, expected = ends(resumed), ends(whole)
    assert_same(found, expected)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["stage"], int(row["step"])) for row in rows] == [
        (row.stage, row.step) for row in whole.rows
    ]
    assert not list(tmp_path.glob(".*"))
