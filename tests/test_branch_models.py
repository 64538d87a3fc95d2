"""Branches in every way of capture, in regions, and in models of torchvision."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from branch_checks import branches, check_all_masks, gate, keep
from branch_nets import Chained, Counted, Nested, conv
from gate_checks import (
    assert_close,
    assert_cost,
    assert_equal_to_compact,
    assert_partition,
    random_keep,
    run,
)
from small_nets import image, wake
from torch import Tensor, nn

import fxprune
from fxprune import capture
from fxprune.api import auto_gate
from fxprune.gated_regions import GatedRegions

# -- captures


@pytest.mark.parametrize("way", ["tracing with shapes", "torch.export"])
@pytest.mark.parametrize("make", [lambda: Counted(2), Nested], ids=["in place", "nested"])
def test_other_ways_of_capture(
    way: str, make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What export writes as ATen operators, adds in place among them, has the same branches."""
    expected = [g.members for g in branches(gate(make()))]
    monkeypatch.setattr(capture, "_WAYS", {way: capture._WAYS[way]})
    gated = check_all_masks(make(), image())
    assert [g.members for g in branches(gated)] == expected


class ByMode(nn.Module):
    """A graph for each mode; one of its blocks has a branch in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3), conv(4, 5)
        self.one, self.two, self.aux = conv(), conv(), conv()
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.one(x)).relu_()
        y = x + self.aux(x) if self.training else x * self.aux(x)
        return self.head(x + self.two(y))


def test_a_branch_is_one_unit_in_both_modes_or_none() -> None:
    x, net = image(), ByMode()
    gated = gate(net, x)
    assert sorted(gated.plan.graphs) == ["eval", "train"]
    assert [g.name for g in branches(gated)] == ["one", "two"]
    for kept in itertools.product((True, False), repeat=2):
        gated.set_keep(random_keep(gated, 0.5) | keep(gated, *kept))
        compact = gated.compact()
        for training in (False, True):
            gated.train(training)
            compact.train(training)
            assert_close(run(compact, x), run(gated, x), f"training={training}")
        assert sum(p.numel() for p in compact.parameters()) == gated.cost().params
        assert any(name.endswith("one.weight") for name, _ in compact.named_parameters()) == kept[0]


class Python(nn.Module):
    """Keeps its Python: a body that is called twice, and a test on values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3), Chained(), conv(5, 2)
        self.body.stem = nn.Conv2d(5, 4, 1)
        self.first = conv(4, 5)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        for _ in range(2):
            y = self.body(x)
            x = x + y if float(y.sum()) > 0 else x - y
        return self.head(x)


def test_regions() -> None:
    x, net = image(), Python()
    gated = gate(net, x)
    assert isinstance(gated, GatedRegions)
    assert [g.name for g in branches(gated)] == ["body.left", "body.right"]
    assert_close(run(gated, x), run(net, x), "open gates against the original")
    for number, kept in enumerate(itertools.product((True, False), repeat=2)):
        gated.set_keep(random_keep(gated, 0.6, number) | keep(gated, *kept))
        assert_cost(gated, assert_equal_to_compact(gated, x), x)


# -- models of torchvision

COUNTS = {
    "resnet18": 8,
    "resnet50": 16,
    "mobilenet_v2": 10,
    "efficientnet_b0": 9,
    "convnext_tiny": 18,
    "swin_t": 24,
    "regnet_y_400mf": 16,
    "shufflenet_v2_x0_5": 0,
    "densenet121": 0,
}
FAST = ("resnet18", "mobilenet_v2", "shufflenet_v2_x0_5")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in COUNTS]
)
def test_models_of_torchvision(name: str, tmp_path: Path) -> None:
    make = getattr(torchvision.models, name)
    check_model(lambda: make(weights=None), COUNTS[name], tmp_path / "model.pt")


def test_a_vision_transformer(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5)

    check_model(make, 4, tmp_path / "model.pt")


def check_model(make: Callable[[], nn.Module], count: int, path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = make().double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    gated = auto_gate(model, x, branches=True)
    assert len(branches(gated)) == count
    assert_partition(gated)
    assert_close(run(gated, x), run(model, x), "open gates against the original")
    for seed, share in enumerate((0.3, 0.6, 0.9)):
        gated.set_keep(random_keep(gated, share, seed))
        compact = assert_equal_to_compact(gated, x)
        assert_cost(gated, compact, x)
    fxprune.save(compact, path)
    assert_close(run(fxprune.load(path, make().double().eval()), x), run(compact, x), "loaded")
