from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fxprune.api import auto_gate
from fxprune.dependency_plot import _lanes, _module_graph, _modules, plot_dependencies
from fxprune.errors import ConfigError

IMAGE = torch.zeros(1, 3, 8, 8)


class Residual(nn.Module):
    """Two groups: the stream through both sums, and the inside of the block."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.inner, self.outer = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.outer(self.inner(x).relu()))


@pytest.fixture(scope="module")
def gated():
    return auto_gate(Residual(), IMAGE)


def test_modules_are_in_order_of_execution(gated):
    assert _modules(gated.plan) == ["stem", "inner", "outer", "head"]


def test_edges_are_ties_between_modules_of_a_group(gated):
    graphs = _module_graph(gated.dependency_graph)
    edges = {
        name: {tuple(sorted(edge)) for edge in graph.edges()} for name, graph in graphs.items()
    }
    assert edges["inner"] == {("inner", "outer")}
    assert {("inner", "stem"), ("outer", "stem")} <= edges["stem"]


def test_groups_have_lanes_and_modules_make_or_read_them(gated):
    rows = {module: row for row, module in enumerate(_modules(gated.plan))}
    lanes = _lanes(gated, rows)
    assert lanes["stem"].rows == {"stem": True, "inner": False, "outer": True, "head": False}
    assert lanes["inner"].rows == {"inner": True, "outer": False}
    assert [lanes[name].place for name in ("stem", "inner")] == [0, 1]


def test_a_lane_is_used_again_below_its_group():
    convs = [nn.Conv2d(3 if i == 0 else 8, 8, 1) for i in range(6)]
    chain = auto_gate(nn.Sequential(*convs), IMAGE)
    lanes = _lanes(chain, {str(row): row for row in range(6)})
    assert [lanes[str(i)].place for i in range(5)] == [0, 1, 0, 1, 0]


def test_the_picture_names_every_module_as_text(gated, tmp_path):
    pytest.importorskip("matplotlib")
    text = plot_dependencies(gated, tmp_path / "graph.svg").read_text()
    for label in ("stem (8)", "inner (6)", "outer", "head", "2 groups, 14 units"):
        assert f">{label}</text>" in text
    assert plot_dependencies(gated, tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_told(gated, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="must end in .png, .svg or .pdf"):
        plot_dependencies(gated, tmp_path / "graph.txt")
    with pytest.raises(ConfigError, match="no group to draw"):
        plot_dependencies(auto_gate(nn.Conv2d(3, 2, 1), IMAGE), tmp_path / "graph.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'fxprune\[plot\]'"):
        plot_dependencies(gated, tmp_path / "graph.svg")
    assert list(tmp_path.iterdir()) == []
