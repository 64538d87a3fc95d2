"""The README's example runs as it stands and prints what it says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


def test_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    said = re.findall(r"^print\(.*?\)  # (.*)$", code[1], re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code[1], str(README), "exec"), names)
    assert capsys.readouterr().out.splitlines() == said
    assert len(said) == 2
    assert (tmp_path / "small.onnx").stat().st_size > 1_000_000
    assert isinstance(names["half"], torch.fx.GraphModule)


def test_training_example(capsys: pytest.CaptureFixture[str]) -> None:
    _, code, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(compile(code, str(README), "exec"), names)
    assert re.fullmatch(
        r"macs: asked 50\.00% of the dense model, kept (49|50)\.\d\d% \(met\)\n",
        capsys.readouterr().out,
    )
    assert isinstance(names["compact"], torch.fx.GraphModule)


def test_shrinking_example(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (shrinking,) = (block for block in blocks if "shrink_(" in block)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(compile(blocks[1] + shrinking, str(README), "exec"), names)
    assert re.search(r"^\d+ units of \d+ groups removed: \d+ param", capsys.readouterr().out, re.M)


def test_example_of_layers_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "ComplexityAware" in block)
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        exec(compile(code, str(README), "exec"), names)
    assert re.fullmatch(
        r"macs: asked 50\.00% of the dense model, kept (49|50)\.\d\d% \(met\)\n",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_exist(command: str) -> None:
    assert command in README.read_text()
    target = command.split()[1]
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.MULTILINE)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
