"""Whole runs of complexity-aware training on tiny nets."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from controllers.aware_loops import STEPS, AwareLoop
from controllers.loops import NETS, batch, differing, nothing_random
from torch import nn

from fxprune import auto_gate, verify
from fxprune.controllers import ComplexityAware, EarlyFinishWarning


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("target", [0.5, 0.25])
def test_the_budget_is_met_and_the_compact_net_computes_the_same(kind: str, target: float) -> None:
    loop = AwareLoop(kind, macs=target).run()
    chosen = loop.aware.finish()
    assert chosen.met
    assert abs(chosen.reached - target) <= 0.01 * target
    assert loop.gated.cost().macs == chosen.cost.macs
    assert loop.gated.sampled_gates is None
    assert loop.losses[-1] < 0.8 * loop.losses[0]
    assert verify(loop.gated.eval(), loop.gated.compact(), batch(0)[0]).passed


def test_a_budget_of_parameters() -> None:
    chosen = AwareLoop(params=0.4).run().aware.finish()
    assert chosen.resource == "params"
    assert abs(chosen.reached - 0.4) <= 0.004


class Wide(nn.Module):
    """Two of the hidden units decide, the others read noise."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 16)
        self.head = nn.Linear(16, 2)
        with torch.no_grad():
            self.hidden.weight[2:] *= 0.1
            self.head.weight[:, 2:] *= 0.1

    def forward(self, x):
        return self.head(F.relu(self.hidden(x)))


def test_every_theta_ends_at_0_or_1_and_a_higher_price_keeps_less() -> None:
    kept = []
    for nu in (0.1, 3.0, 40.0):
        torch.manual_seed(0)
        x = torch.randn(256, 2)
        y = (x[:, 0] * x[:, 1] > 0).long()
        gated = auto_gate(Wide(), x[:1]).train()
        optimizer = torch.optim.SGD(gated.parameters(), 0.2, momentum=0.9)
        aware = ComplexityAware(gated, optimizer, steps=300, nu=nu)
        for _ in range(300):
            optimizer.zero_grad()
            F.cross_entropy(gated(x), y).backward()
            optimizer.step()
            aware.step()
        chosen = aware.finish()
        theta = aware.thetas()
        assert aware.settled >= 0.98
        assert (((theta < 0.05) | (theta > 0.95)).double().mean()) == aware.settled
        assert chosen.target is None
        assert chosen.met
        kept.append(int(chosen.keep.sum()))
    assert kept[0] > kept[1] > kept[2] == 1, kept


class Uneven(nn.Module):
    """A first layer that costs MACs and a last one that costs parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 24, 5, padding=2)
        self.last = nn.Linear(24 * 1, 200)
        self.head = nn.Linear(200, 3)

    def forward(self, x):
        return self.head(F.relu(self.last(F.relu(self.conv(x)).mean((2, 3)))))


def test_alpha_trades_parameters_for_macs() -> None:
    costs = {}
    for alpha in (0.0, 1.0):
        torch.manual_seed(0)
        gated = auto_gate(Uneven(), batch(0)[0]).train()
        optimizer = torch.optim.SGD(gated.parameters(), 0.05, momentum=0.9)
        aware = ComplexityAware(gated, optimizer, steps=120, nu=0.3, alpha=alpha)
        dense = gated.cost()
        for number in range(120):
            x, y = batch(number)
            optimizer.zero_grad()
            F.cross_entropy(gated(x), y).backward()
            optimizer.step()
            aware.step()
        aware.finish()
        cost = gated.cost()
        costs[alpha] = (cost.macs / dense.macs, cost.params / dense.params)
    assert costs[1.0][0] < costs[0.0][0], costs
    assert costs[0.0][1] < costs[1.0][1], costs


def test_what_reached_0_is_closed_for_the_rest_of_the_run() -> None:
    loop = AwareLoop("linear", macs=0.3).run_to("search")
    removed = torch.zeros(loop.gated.plan.n_units, dtype=torch.bool)
    while loop.aware.phase == "search":
        loop.step()
        theta = loop.aware.thetas()
        assert not theta[removed].any()
        gates = loop.gated.sampled_gates
        assert gates is None or not gates[removed].any()
        removed |= theta == 0
    assert removed.any()
    keep = torch.cat(list(loop.gated.keep.values()))
    assert not keep[removed].any()


# -- sampled gates -----------------------------------------------------------------------------------


def test_eval_mode_is_deterministic_and_knows_no_samples() -> None:
    loop = AwareLoop("linear").run_to("search")
    loop.step()
    x = batch(0)[0]
    with torch.no_grad():
        plain = copy.deepcopy(loop.gated).eval()(x)
        sampled = loop.gated.train()(x)
        assert torch.equal(loop.gated.eval()(x), plain)
        assert not torch.equal(sampled, plain)


def test_every_step_has_a_sample_of_its_own() -> None:
    loop = AwareLoop("linear").run_to("search")
    seen = []
    while loop.aware.phase == "search":
        seen.append(loop.gated.sampled_gates.detach().clone())
        loop.step()
    assert len({tuple(gates.tolist()) for gates in seen}) > 0.9 * len(seen)


def test_copies_and_pickles_have_no_sample() -> None:
    loop = AwareLoop("linear")
    assert loop.gated.sampled_gates is not None
    for made in (copy.deepcopy(loop.gated), pickle.loads(pickle.dumps(loop.gated))):
        assert made.sampled_gates is None
    assert not [key for key in loop.gated.state_dict() if "sample" in key]
    assert "sampled" not in str(loop.optimizer.state_dict().keys())


@pytest.mark.parametrize("kind", ["linear", "depthwise"])
def test_gradients_add_up_over_the_parts_of_a_step(kind: str) -> None:
    whole, parts = AwareLoop("linear"), AwareLoop("linear", accumulate=3)
    for loop in (whole, parts):
        loop.train_weights()
    torch.testing.assert_close(whole.gated.sampled_gates.grad, parts.gated.sampled_gates.grad)
    assert AwareLoop(kind, accumulate=2).run().aware.finish().met


def test_torchs_random_state_is_not_touched() -> None:
    loop = AwareLoop("linear")
    loop.train_weights()
    with nothing_random():
        loop.aware.step()
        ComplexityAware(loop.gated, loop.optimizer, steps=3, macs=0.5)


def test_a_seed_decides_everything() -> None:
    ends = [AwareLoop("linear", seed=seed).run().gated.state_dict() for seed in (0, 0, 1)]
    assert differing(ends[0], ends[1]) == []
    assert differing(ends[0], ends[2]) != []


def test_the_final_phase_trains_what_the_compact_net_computes() -> None:
    loop = AwareLoop(macs=0.4).run_to("final")
    chosen = loop.aware.selection
    masks = {name: mask.clone() for name, mask in loop.gated.keep.items()}
    loop.run()
    assert loop.aware.finish() is chosen
    assert all(torch.equal(mask, loop.gated.keep[name]) for name, mask in masks.items())
    assert loop.aware.expected == chosen.reached


def test_finishing_early_points_at_the_caller() -> None:
    loop = AwareLoop("linear").run(until=STEPS // 6)
    with pytest.warns(EarlyFinishWarning, match="finished after 10 of 60 steps") as caught:
        loop.aware.finish()
    assert caught[0].filename == __file__
    assert loop.aware.finish().met


@pytest.mark.parametrize("steps", [2, 3, 5, 10, 20])
@pytest.mark.parametrize("target", [0.3, 0.6])
def test_the_shortest_runs_meet_their_budget_too(steps: int, target: float) -> None:
    """However much could leave in their few steps: what is gone cannot come back."""
    loop = AwareLoop("linear", steps=steps, macs=target, shrink=True).run()
    assert loop.aware.finish().met


def test_widths_are_multiples() -> None:
    loop = AwareLoop(nu=1.0, round_to=4).run()
    loop.aware.finish()
    assert {int(mask.sum()) % 4 for mask in loop.gated.keep.values()} == {0}
    assert loop.aware.selection.reached < 0.9
