"""Complexity-aware training in the runtime."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from training.runs import SETTINGS, branched, data, trained

from fxprune.errors import ConfigError
from fxprune.training import TrainSettings, train
from fxprune.training.stage import Stage

BUDGET = dataclasses.replace(SETTINGS, method="complexity", macs=0.3, epochs=4)
PRICE = dataclasses.replace(BUDGET, macs=None, nu=3.0, alpha=0.0, dense=False)


def test_a_budget(tmp_path) -> None:
    result = train(branched(), data(), BUDGET, tmp_path)
    assert result.selection.met
    assert abs(result.compact.macs / result.dense.macs - 0.3) < 0.004
    assert result.verification.passed
    assert [group.kind for group in result.gated.groups].count("branch") <= 1
    assert "branch" in {group.kind for group in result.gated._whole_plan.groups}
    assert 0.5 < result.settled <= 1
    assert "Decided before masks were fixed" in str(result)
    found = json.loads(json.dumps(result.to_dict()))
    assert found["target"] == {"macs": 0.3}
    assert found["settled"] == result.settled
    assert found["nu"] > 0
    assert len(found["epoch_seconds"]) == 4
    assert sum(found["epoch_seconds"]) < found["seconds"]
    # All samples are the weights': nothing is held back.
    assert [row.step for row in result.rows if row.stage == "complexity"] == [12, 24, 36, 48]


def test_a_price(tmp_path) -> None:
    result = train(branched(), data(), PRICE, tmp_path)
    found = result.to_dict()
    assert found["target"] == {"params": None}
    assert found["nu"] == 3.0
    assert found["compact"]["params"] < found["dense"]["params"]
    assert "params: kept" in str(result)


@pytest.mark.parametrize("steps", [3, 10, 17, 30])
def test_stopped_in_any_phase_the_run_ends_the_same(tmp_path, monkeypatch, steps) -> None:
    settings = dataclasses.replace(BUDGET, dense=False, checkpoint_every=2)
    whole = trained(branched(), data(), settings, tmp_path / "whole")
    step, done = Stage._weight_step, 0

    def stopping(self, *args):
        nonlocal done
        if done == steps:
            raise KeyboardInterrupt
        done += 1
        return step(self, *args)

    monkeypatch.setattr(Stage, "_weight_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        trained(branched(), data(), settings, tmp_path / "run")
    monkeypatch.setattr(Stage, "_weight_step", step)
    again = trained(branched(), data(), settings, tmp_path / "run", resume=True)
    assert again.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []


def test_branches_come_with_the_method_unless_layers_stay() -> None:
    assert BUDGET.with_branches
    assert not dataclasses.replace(BUDGET, beta=0).with_branches
    assert not dataclasses.replace(BUDGET, branches=False).with_branches
    assert not SETTINGS.with_branches
    assert dataclasses.replace(SETTINGS, branches=True).with_branches


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "ato", "nu": 1.0}, "'nu' argument is for the method 'complexity'"),
        ({"method": "ato", "macs": 0.5, "beta": 0.5}, "'beta' argument is for the method"),
        ({"method": "complexity"}, "exactly one of 'macs' and 'params', or 'nu'"),
        ({"method": "complexity", "macs": 0.5, "nu": 1.0}, "exactly one of"),
        ({"method": "complexity", "macs": 0.5, "branches": 1}, "'branches' argument must be"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(given, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainSettings(epochs=1, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [({"nu": -1.0}, "'nu' parameter"), ({"macs": 0.5, "beta": 2}, "'beta' parameter")],
    ids=str,
)
def test_what_the_controller_refuses_stops_the_run_before_it_begins(
    tmp_path, given, message: str
) -> None:
    settings = TrainSettings(epochs=1, method="complexity", device="cpu", **given)
    with pytest.raises(ConfigError, match=message):
        train(branched(), data(), settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()
