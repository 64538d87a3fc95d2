"""The program around the commands: notes, warnings, interrupts, pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fxprune
from fxprune.cli import commands, entry, main
from fxprune.errors import ConfigError

SHAPE = ["--input", "1,3,8,8"]
SMALL = "fxprune_test_nets:small"


# -- the program itself ----------------------------------------------------------------------------
def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"fxprune {fxprune.__version__}\n"


def test_notes_are_printed(run, monkeypatch):
    def fail(args):
        error = ConfigError("What is wrong.")
        error.add_note("And one thing more.")
        raise error

    monkeypatch.setattr(commands, "inspect", fail)
    assert run("inspect", "net") == (2, "", "What is wrong.\nAnd one thing more.\n")


def test_debug_raises():
    with pytest.raises(ConfigError, match="no 'resnet81'"):
        main(["inspect", "resnet81", "--debug"])


def test_warnings_are_silent_without_debug(run, monkeypatch):
    def warn(args):
        import warnings

        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return commands.Answer("done", {})

    monkeypatch.setattr(commands, "inspect", warn)
    assert run("inspect", "net") == (0, "done\n", "")
    with pytest.raises(DeprecationWarning):
        main(["inspect", "net", "--debug"])


def test_an_interrupt_is_no_traceback(run, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "inspect", interrupt)
    assert run("inspect", "net") == (130, "", "Interrupted.\n")


def test_a_closed_pipe_is_no_error(here):
    """As in ``fxprune inspect MODEL | head -1``."""
    program = f"import sys; from fxprune.cli import main; sys.exit(main(['inspect', '{SMALL}']))"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(fxprune.__file__).parents[1])},
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_command_has_json():
    parser = entry._parser()
    choices = parser._subparsers._group_actions[0].choices
    assert set(choices) >= {"demo", "inspect", "prune", "train", "compare"}
    for command in choices.values():
        assert "--json" in command.format_help()
