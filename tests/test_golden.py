"""The groups and frozen axes of a few nets, as text: a change in the analysis shows as a diff.

``pytest tests/test_golden.py --update-golden`` writes the files anew; read the diff before you commit it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from small_nets import AuxHead, Concat, Grouped, Residual, image
from torch import Tensor, nn

from fxprune.api import auto_gate
from fxprune.gated import GatedModule

GOLDEN = Path(__file__).parent / "golden"
NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (Residual(), image()),
    "concat": lambda: (Concat(), image()),
    "grouped": lambda: (Grouped(), image()),
    "aux_head": lambda: (AuxHead(), image()),
    "resnet18": lambda: (torchvision.models.resnet18(), torch.zeros(1, 3, 64, 64)),
}


def dump(gated: GatedModule) -> str:
    """Describe what can be pruned and what cannot; source lines without their number and directory."""
    lines = []
    for group in gated.groups:
        lines.append(f"{group.name}: {group.size} {group.kind}")
        lines += [f"    {member}" for member in group.members]
    lines.append("frozen:")
    lines += [f"    {axis}" for axis in gated.frozen]
    text = "\n".join([*lines, f"cost: {gated.cost().macs} MACs, {gated.cost().params} parameters"])
    return re.sub(r"\([^()\s]*?([\w]+\.py):\d+\)", r"(\1)", text) + "\n"


@pytest.mark.parametrize("name", NETS)
def test_groups(name: str, request: pytest.FixtureRequest) -> None:
    text = dump(auto_gate(*NETS[name]()))
    file = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), "run pytest --update-golden if this is meant"


def test_every_file_belongs_to_a_net() -> None:
    assert sorted(file.stem for file in GOLDEN.glob("*")) == sorted(NETS)
