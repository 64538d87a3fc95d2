"""The policy of attention on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxprune.cli import main

NET = """
from torch import nn

def layer():
    return nn.Sequential(nn.Linear(6, 12), nn.TransformerEncoderLayer(12, 3, 16, batch_first=True))
"""
KINDS = {
    "both": {"channel", "head", "head_dim"},
    "head": {"channel", "head"},
    "head_dim": {"channel", "head_dim"},
    "off": {"channel"},
}


@pytest.fixture(autouse=True)
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fxprune_attention_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("policy", KINDS)
def test_inspect_and_prune_take_a_policy(
    policy: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["fxprune_attention_net:layer", "--input", "2,5,6", "--attention", policy, "--json"]
    assert main(["inspect", *given]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {group["kind"] for group in shown["groups"]} == KINDS[policy]
    assert main(["prune", *given, "--macs", "0.7", "--no-latency"]) == 0
    pruned = json.loads(capsys.readouterr().out)
    assert {group["kind"] for group in pruned["report"]["groups"]} == KINDS[policy]


@pytest.mark.parametrize("command", ["inspect", "prune", "train"])
def test_another_policy_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "fxprune_attention_net:layer", "--attention", "heads"])
    assert caught.value.code == 2
    assert "--attention" in capsys.readouterr().err
