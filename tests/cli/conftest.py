"""Fixtures of the command line's tests: a directory with models in it, and commands in process."""

from __future__ import annotations

import json
import sys

import pytest

from fxprune.cli import main

FACTORY = """
from torch import nn
from fxprune_test_helper import WIDTH

def small():
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU(), nn.Conv2d(WIDTH, 4, 1))

def classifier():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )

def two_inputs():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(5, 6), nn.Linear(6, 2)
        def forward(self, x, scale):
            return self.out(self.words(x)) * scale
    return Net()

def broken():
    raise RuntimeError("no weights today")

NOT_A_MODEL = dict
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A current directory with two modules in it; nothing of them stays imported."""
    (tmp_path / "fxprune_test_nets.py").write_text(FACTORY)
    (tmp_path / "fxprune_test_helper.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("fxprune_test_")]:
        del sys.modules[name]


@pytest.fixture
def run(capsys):
    """Run a command; return its status, stdout and stderr."""

    def run(*arguments):
        status = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def run_json(run):
    """Run a command with --json; return the one document it prints."""

    def run_json(*arguments):
        status, out, _ = run(*arguments, "--json")
        assert status == 0
        assert out.count("\n") == 1
        return json.loads(out)

    return run_json
