"""Whoever reads groups takes branches too: the command line, pictures, reports, controllers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from branch_nets import Counted
from gate_checks import assert_close, run
from small_nets import image

import fxprune
from fxprune.api import auto_gate
from fxprune.cli import main
from fxprune.controllers import AutoTrainOnce
from fxprune.controllers.masks import open_units
from fxprune.dependency_plot import plot_dependencies
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.training import TrainSettings

NET = """
from branch_nets import Counted

def net():
    return Counted(3).float()
"""


@pytest.fixture
def gated() -> GatedModule:
    return auto_gate(Counted(), image(), branches=True)


@pytest.mark.filterwarnings("ignore::fxprune.prune.BudgetWarning")
def test_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fxprune_branch_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    given = ["fxprune_branch_net:net", "--input", "2,3,6,6", "--json", "--branches"]
    assert main(["inspect", *given]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [g["name"] for g in shown["groups"] if g["kind"] == "branch"] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
    ]
    assert main(["prune", *given, "--macs", "0.2", "--no-latency", "--out", "small.pt"]) == 0
    pruned = json.loads(capsys.readouterr().out)
    kept = [g["kept"] for g in pruned["report"]["groups"] if g["kind"] == "branch"]
    assert len(kept) == 3
    assert 0 in kept
    assert fxprune.load("small.pt", Counted(3).float())


def test_training_takes_the_option_and_checks_it() -> None:
    assert TrainSettings(macs=0.5, epochs=1, branches=True).branches
    with pytest.raises(ConfigError, match="'branches' argument must be a bool"):
        TrainSettings(macs=0.5, epochs=1, branches=1)


def test_the_picture_shows_them(gated: GatedModule, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot_dependencies(gated, tmp_path / "net.svg").stat().st_size > 1000


def test_a_report_counts_them(gated: GatedModule) -> None:
    gated.set_keep({"blocks.1": torch.tensor([False])})
    found = fxprune.report(gated, gated.compact(), image(), latency=False).to_dict()
    widths = {g["name"]: g["kept"] for g in found["groups"] if g["kind"] == "branch"}
    assert widths == {"blocks.0": 1, "blocks.1": 0, "blocks.2": 1}


def test_open_units_may_close_a_branch(gated: GatedModule) -> None:
    keep = open_units(gated, np.full(gated.plan.n_units, -100.0))
    slices = gated.plan.group_slices()
    kept = {group.name: int(keep[slices[group.name]].sum()) for group in gated.groups}
    assert kept == {g.name: int(g.kind != "branch") for g in gated.groups}


@pytest.mark.filterwarnings("ignore::fxprune.prune.BudgetWarning")
def test_auto_train_once_prunes_branches() -> None:
    """Asked for less than the channels alone can give."""
    given = image()
    net, x = Counted().float(), given.float()
    gated = auto_gate(net, x, branches=True).train()
    with_channels_only = auto_gate(net, x)
    smallest = with_channels_only.cost_of(
        np.concatenate([np.arange(g.size) < 1 for g in with_channels_only.groups])
    )
    dense = gated.cost()
    share = 0.5 * smallest.macs / dense.macs
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    control = AutoTrainOnce(gated, optimizer, macs=share, steps=20, every=2)
    target = torch.arange(2)
    for _ in range(20):
        loss = F.cross_entropy(gated(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        control.step(lambda: F.cross_entropy(gated(x), target))
    control.finish()
    assert gated.cost().macs < smallest.macs
    gated.double().eval()
    assert_close(run(gated.compact(), given), run(gated, given))
