"""Channel shuffles become look-ups, nothing else does, and channels stay free through them."""

from __future__ import annotations

import pytest
import torch
from gate_checks import assert_equal_to_compact, random_keep
from torch import Tensor, fx, nn

from fxprune.analysis.build import Analysis
from fxprune.api import auto_gate
from fxprune.passes.lower_channel_shuffle import LowerChannelShuffle

IMAGE = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(SPELLINGS[self.spelling](self.a(x)))


def torchvision_style(x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


SPELLINGS = {
    "torchvision": torchvision_style,
    "reshape": lambda x: x.reshape(-1, 3, 4, 6, 6).permute(0, 2, 1, 3, 4).reshape(-1, 12, 6, 6),
    "flatten": lambda x: torch.transpose(x.view(-1, 3, 4, 6, 6), -4, -3).flatten(1, 2),
    # these are no shuffles of channels
    "spatial": lambda x: x.view(-1, 12, 2, 3, 6).transpose(2, 3).reshape(-1, 12, 6, 6),
    "mixed": lambda x: x.view(-1, 3, 4, 6, 6).permute(0, 2, 1, 4, 3).reshape(-1, 12, 6, 6),
    "back": lambda x: x.view(-1, 3, 4, 6, 6).transpose(3, 4).reshape(-1, 12, 6, 6),
}


def lowered(net: Net) -> tuple[fx.GraphModule, bool]:
    gm = fx.symbolic_trace(net)
    plan = Analysis(gm, {"eval": gm.graph}).run((IMAGE,), {}, lambda name: None)
    result = LowerChannelShuffle(plan.graphs["eval"].trace)(gm)
    return gm, result.changed


@pytest.mark.parametrize("spelling", ["torchvision", "reshape", "flatten"])
def test_a_shuffle_becomes_one_look_up(spelling: str) -> None:
    net = Net(spelling)
    gm, changed = lowered(net)
    assert changed
    assert torch.equal(gm(IMAGE), net(IMAGE))
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"].count(
        torch.index_select
    ) == 1
    assert not [
        n for n in gm.graph.nodes if n.target in ("view", "transpose", "permute", "reshape")
    ]


@pytest.mark.parametrize("spelling", ["spatial", "mixed", "back"])
def test_other_reshapes_stay(spelling: str) -> None:
    _, changed = lowered(Net(spelling))
    assert not changed


@pytest.mark.parametrize("spelling", list(SPELLINGS))
def test_gated_equals_compact(spelling: str) -> None:
    gated = auto_gate(Net(spelling), IMAGE)
    free = spelling in ("torchvision", "reshape", "flatten", "spatial")
    assert sorted(group.size for group in gated.groups) == ([12] if free else [3, 4])
    for seed in range(3):
        gated.set_keep(random_keep(gated, 0.5, seed=seed))
        assert_equal_to_compact(gated, IMAGE)


def test_a_net_of_shuffles_keeps_every_channel_free() -> None:
    class Shuffles(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 4, 1)
            self.units = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for unit in self.units:
                left, right = x.chunk(2, 1)
                x = torchvision_style(torch.cat([left, torch.relu(unit(right))], 1))
            return self.head(x)

    gated = auto_gate(Shuffles(), IMAGE)
    assert sum(group.size for group in gated.groups) == 12 + 3 * 6
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, IMAGE)
