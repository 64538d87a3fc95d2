"""One-shot pruning: importances, the budget solver, `select` and `prune`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gate_checks import assert_equal_to_compact
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from fxprune.errors import BudgetError, ConfigError
from fxprune.importance import IMPORTANCES, magnitude, score_units
from fxprune.prune import BudgetWarning, select

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual stream, a wide branch and a head: groups of 16, 64 and 24 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.up, self.down = nn.Conv2d(16, 64, 3, padding=1), nn.Conv2d(64, 16, 1)
        self.norm = nn.BatchNorm2d(64)
        self.last, self.head = nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.relu(self.norm(self.up(x))))
        return self.head(self.last(x).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def macs(model: nn.Module, x: Tensor = IMAGE) -> int:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() // 2


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# -- importance


def test_magnitude_is_the_norm_over_all_axes_of_a_unit() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False))
    gated = fxprune.auto_gate(model, IMAGE)
    rows = model[0].weight.detach().flatten(1).norm(dim=1)
    columns = model[1].weight.detach().flatten(2)[..., 0].norm(dim=0)
    expected = (rows / rows.mean() + columns / columns.mean()) / 2
    np.testing.assert_allclose(magnitude(gated), expected.numpy(), rtol=1e-6)


def test_l1_differs_from_l2_and_random_follows_its_seed() -> None:
    gated = fxprune.auto_gate(net(), IMAGE)
    scores = {name: score_units(gated, name, 3) for name in IMPORTANCES}
    assert not np.allclose(scores["magnitude"], scores["magnitude_l1"])
    assert np.array_equal(scores["random"], score_units(gated, "random", 3))
    assert not np.array_equal(scores["random"], score_units(gated, "random", 4))


def test_a_weak_channel_scores_low_and_goes_first() -> None:
    model = net()
    with torch.no_grad():
        model.up.weight[7] *= 1e-3
        model.down.weight[:, 7] *= 1e-3
    gated = fxprune.auto_gate(model, IMAGE)
    select(gated, macs=0.99)
    assert not gated.keep["up"][7]


def test_scores_of_ones_own() -> None:
    gated = fxprune.auto_gate(net(), IMAGE)
    n = gated.plan.n_units
    ramp = torch.arange(n).float()
    by_tensor, by_call = select(gated, macs=0.5, importance=ramp), None
    by_call = select(gated, macs=0.5, importance=lambda g: torch.arange(g.plan.n_units).float())
    assert np.array_equal(by_tensor.keep, by_call.keep)


@pytest.mark.parametrize(
    ("importance", "match"),
    [
        ("taylor", r"one of \['magnitude', 'magnitude_l1', 'random'\]"),
        (torch.ones(3), r"shape \(104,\)[\s\S]*\(3,\)"),
        (lambda gated: [1.0], r"shape \(104,\)[\s\S]*list"),
        (torch.full((104,), math.nan), "must be finite"),
    ],
)
def test_bad_importances(importance: object, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fxprune.prune(net(), IMAGE, macs=0.5, importance=importance)


# -- budget


@pytest.mark.parametrize("resource", ["macs", "params"])
@pytest.mark.parametrize("target", [1.0, 0.9, 0.5, 0.2, 0.1])
def test_the_budget_of_the_whole_model_is_met(resource: str, target: float) -> None:
    model = net()
    compact = fxprune.prune(model, IMAGE, **{resource: target})
    count = {"macs": macs, "params": params}[resource]
    assert count(compact) / count(model) == pytest.approx(target, rel=0.01)
    said = compact.meta["fxprune"]
    assert said["met"]
    assert said["reached"] == pytest.approx(count(compact) / count(model), rel=1e-9)


@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_no_group_is_left_empty(importance: str) -> None:
    gated = fxprune.auto_gate(net().double(), IMAGE.double())
    select(gated, params=0.02, importance=importance)
    assert all(mask.any() for mask in gated.keep.values())
    assert_equal_to_compact(gated, IMAGE.double())


@pytest.mark.filterwarnings("ignore::fxprune.prune.BudgetWarning")  # 8 is coarse here
@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_rounded(round_to: int) -> None:
    gated = fxprune.auto_gate(net(), IMAGE)
    chosen = select(gated, macs=0.5, round_to=round_to)
    assert all(int(mask.sum()) % round_to == 0 for mask in gated.keep.values())
    assert chosen.met == (abs(chosen.reached - 0.5) <= 0.005)


def test_a_unit_of_a_grouped_convolution_counts_as_its_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 4, 1))
    gated = fxprune.auto_gate(model, IMAGE)
    assert [group.size for group in gated.groups] == [4, 4]
    select(gated, params=0.42, round_to=8)  # a unit is 8 channels: any number of units will do
    assert sorted(int(mask.sum()) for mask in gated.keep.values()) == [2, 3]


def test_what_cannot_be_met_with_these_blocks_is_said() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2))
    with pytest.warns(BudgetWarning, match=r"asked 80\.00%.*\(nearest reachable\)"):
        compact = fxprune.prune(model, torch.zeros(1, 4), params=0.8)
    assert compact.meta["fxprune"]["met"] is False


@pytest.mark.filterwarnings("ignore::fxprune.prune.BudgetWarning")  # 8 is coarse here
def test_auto_gate_remembers_round_to() -> None:
    gated = fxprune.auto_gate(net(), IMAGE, round_to=8)
    select(gated, macs=0.5)
    assert all(int(mask.sum()) % 8 == 0 for mask in gated.keep.values())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({}, ConfigError, "exactly one of 'macs' and 'params'"),
        ({"macs": 0.5, "params": 0.5}, ConfigError, "exactly one"),
        ({"macs": 0}, BudgetError, r"'macs' parameter must be a share in \(0, 1\]. Got 0 "),
        ({"macs": 1.5}, BudgetError, r"share in \(0, 1\]. Got 1.5"),
        ({"params": -0.1}, BudgetError, r"'params' parameter must be a share"),
        ({"macs": math.nan}, BudgetError, "Got nan"),
        ({"macs": "half"}, BudgetError, "Got 'half'"),
        ({"macs": True}, BudgetError, "Got True"),
        ({"macs": 0.5, "round_to": 0}, ConfigError, "positive integer. Got 0"),
        ({"macs": 0.5, "round_to": 2.0}, ConfigError, "positive integer. Got 2.0"),
    ],
)
def test_bad_budgets(options: dict[str, object], error: type[Exception], match: str) -> None:
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(error, match=match):
        fxprune.prune(model, IMAGE, **options)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_budget_out_of_reach_says_the_least_that_can() -> None:
    with pytest.raises(BudgetError, match=r"least that can be reached is (0\.\d+)") as caught:
        fxprune.prune(net(), IMAGE, params=0.001)
    hint = float(caught.value.hint.split("params=")[1].split(";")[0])
    assert fxprune.prune(net(), IMAGE, params=hint).meta["fxprune"]["met"]


def test_ignored_layers_keep_their_width() -> None:
    compact = fxprune.prune(net(), IMAGE, macs=0.3, ignore=("up",))
    assert compact.up.out_channels == 64
    assert compact.down.in_channels == 64


def test_the_callers_model_is_untouched_and_the_result_is_plain() -> None:
    model = net()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    compact = fxprune.prune(model, IMAGE, macs=0.4)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(type(m).__module__.startswith("torch.") for m in compact.modules())
    assert params(compact) < params(model)
