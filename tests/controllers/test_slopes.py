"""What the slopes at sampled gates tell about the slope of the expected loss by theta."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers.slopes import Slopes
from fxprune.gated import GatedModule

N = 6
HALF = 0.5  # any gate between closed and open


@functools.cache
def tiny() -> tuple[GatedModule, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, N), nn.Sigmoid(), nn.Linear(N, 3)).double()
        x, y = torch.randn(16, 4).double(), torch.randn(16, 3).double()
        nn.init.normal_(net[2].weight)
    return auto_gate(net, x[:1]).train(), x, y


def squares(outputs: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(outputs, y)


def entropy(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(0.3 * outputs, y.argmax(1))


def steep(outputs: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(4 * outputs, y.argmax(1))


def loss_and_slopes(loss, gates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss at some gates, shape (N,), and its slopes by them."""
    gated, x, y = tiny()
    gated.sampled_gates = gates.clone().requires_grad_()
    value = loss(gated(x), y)
    value.backward()
    return value.detach(), gated.sampled_gates.grad


MASKS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=N)), dtype=torch.float64)


def losses_and_slopes(loss) -> tuple[Tensor, Tensor]:
    """Return the loss at every mask, shape (2**N,), and its slopes by the gates, (2**N, N)."""
    values, slopes = zip(*(loss_and_slopes(loss, mask) for mask in MASKS), strict=True)
    return torch.stack(values), torch.stack(slopes)


def chances(theta: Tensor) -> Tensor:
    """Return the probability of every mask, shape (2**N,)."""
    return torch.where(MASKS > 0, theta, 1 - theta).prod(1)


def exact(values: Tensor, theta: Tensor) -> Tensor:
    """Return the gradient of the expected loss by theta: it is linear in each of them."""
    found = []
    for i in range(N):
        others = [j for j in range(N) if j != i]
        chance = torch.where(MASKS[:, others] > 0, theta[others], 1 - theta[others]).prod(1)
        found.append((chance * values * (2 * MASKS[:, i] - 1)).sum())
    return torch.stack(found)


def at_both_ends(loss, theta: Tensor) -> Tensor:
    """Return what one estimate tends to: the mean over both ends of the mean slopes there."""
    _, slopes = losses_and_slopes(loss)
    found = []
    for i in range(N):
        ends = []
        for end in (0, 1):
            at = (MASKS[:, i] == end) * chances(theta)
            ends.append((at * slopes[:, i]).sum() / at.sum())
        found.append(sum(ends) / 2)
    return torch.stack(found)


def on_the_way(loss, theta: Tensor) -> Tensor:
    """Return what the other tends to: the mean slope at a gate anywhere between 0 and 1.

    By Gauss-Legendre quadrature.
    """
    found = []
    places, weights = np.polynomial.legendre.leggauss(8)
    for i in range(N):
        chance = chances(theta) * (MASKS[:, i] > 0)
        mean = 0.0
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            gates = MASKS.clone()
            gates[:, i] = place
            slopes = torch.stack([loss_and_slopes(loss, row)[1][i] for row in gates])
            mean += weight * (chance * slopes).sum() / chance.sum()
        found.append(mean)
    return torch.stack(found)


RULES = {"both ends": at_both_ends, "on the way": on_the_way}
THETAS = {
    "halves": torch.full((N,), 0.5, dtype=torch.float64),
    "between": torch.linspace(0.1, 0.9, N, dtype=torch.float64),
    "nearly there": torch.tensor([0.01, 0.99, 0.5, 0.02, 0.98, 0.9], dtype=torch.float64),
}


@pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_rules_are_unbiased_where_the_loss_is_quadratic_in_each_gate(rule, theta) -> None:
    values, _ = losses_and_slopes(squares)
    torch.testing.assert_close(rule(squares, theta), exact(values, theta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
def test_the_bias_of_both_ends_is_small_where_no_gate_decides_alone(theta) -> None:
    values, _ = losses_and_slopes(entropy)
    true = exact(values, theta)
    off = (at_both_ends(entropy, theta) - true).abs().max()
    assert off < 0.05 * true.abs().max()


@pytest.mark.parametrize("loss", [entropy, steep])
def test_on_the_way_there_is_no_bias_whatever_the_loss(loss) -> None:
    theta = THETAS["between"]
    true = exact(losses_and_slopes(loss)[0], theta)
    torch.testing.assert_close(on_the_way(loss, theta), true, rtol=1e-6, atol=1e-9)


def test_where_gates_decide_the_loss_both_ends_are_off_and_the_way_is_not() -> None:
    theta = THETAS["between"]
    true = exact(losses_and_slopes(steep)[0], theta)
    off = (at_both_ends(steep, theta) - true).abs().max()
    assert off > 0.05 * true.abs().max()


def test_the_plain_mean_of_the_slopes_is_biased() -> None:
    """Or there would be no need to keep the two ends apart."""
    values, slopes = losses_and_slopes(squares)
    theta = THETAS["between"]
    mean = (chances(theta)[:, None] * slopes).sum(0)
    true = exact(values, theta)
    assert (mean - true).abs().max() > 0.1 * true.abs().max()


@pytest.mark.usefixtures("certain")
def test_running_means_find_it_by_sampling() -> None:
    """With windows as long as the run, and the prior's weight against so many samples."""
    values, _ = losses_and_slopes(squares)
    theta = THETAS["halves"]
    found = Slopes(torch.zeros(N, dtype=torch.int64), windows=(10**9,) * 3)
    generator = torch.Generator().manual_seed(0)
    counted = torch.ones(N, dtype=torch.bool)
    kinds = torch.multinomial(torch.tensor([0.4, 0.2, 0.4]), 3000 * N, True, generator=generator)
    between = torch.rand(3000 * N, generator=generator, dtype=torch.float64)
    samples = torch.where(kinds == 1, between, kinds.double() / 2)
    noise = []
    for sample in samples.view(-1, N):
        slopes = loss_and_slopes(squares, sample)[1]
        noise.append(slopes)
        found.add(slopes, sample, counted)
    spread = torch.stack(noise).std(0) / (0.6 * len(noise)) ** 0.5
    # Neighbours that explore shift the expectation, by what theta of them does.
    true = exact(values, theta)
    off = (found.effects(counted) - true).abs()
    assert (off < 4 * spread + 0.02 * true.abs().max()).all()


ALL = torch.ones(3, dtype=torch.bool)


def gates_of(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def certain(monkeypatch) -> None:
    """Let what was measured stand alone: no prior, no doubt."""
    monkeypatch.setattr("fxprune.controllers.slopes._PRIOR", 1e-9)
    monkeypatch.setattr("fxprune.controllers.slopes._DOUBT", 0.0)


def taught(*seen: tuple[tuple[float, ...], tuple[float, ...]], groups: list[int]) -> Slopes:
    """Return what is known after some steps, each with its slopes and its gates."""
    found = Slopes(torch.tensor(groups))
    for slopes, gates in seen:
        found.add(gates_of(*slopes), gates_of(*gates), torch.ones(len(groups), dtype=torch.bool))
    return found


@pytest.mark.parametrize(("gate", "expected"), [(0.0, -1.0), (HALF, -3.0)])
@pytest.mark.usefixtures("certain")
def test_closed_gates_need_open_ones_and_exploring_ones_do_not(gate, expected) -> None:
    found = taught(((-3.0,), (gate,)), ((1.0,), (1.0,)), groups=[0])
    assert found.effects(ALL[:1]).item() == pytest.approx(expected)


@pytest.mark.usefixtures("certain")
def test_both_rules_count_by_their_samples() -> None:
    steps = [(-4.0, 0), (0.0, 1), (-1.0, HALF), (-2.0, HALF), (-4.5, HALF)]
    found = taught(*(((slope,), (gate,)) for slope, gate in steps), groups=[0])
    assert found.effects(ALL[:1]).item() == pytest.approx((1 * -2 + 3 * -2.5) / 4)


def test_rare_gates_borrow_from_their_group(monkeypatch) -> None:
    monkeypatch.setattr("fxprune.controllers.slopes._DOUBT", 0.0)
    found = taught(((-3.0, 0.5, 0.25), (HALF, 1, 1)), groups=[0, 0, 1])
    # Unit 0 was seen half open, unit 1 was not but is of its group, unit 2 has no such neighbour.
    assert found.effects(ALL).tolist() == pytest.approx([-3.0, -3.0, 0.0])


def test_of_the_group_only_those_alive_count(monkeypatch) -> None:
    monkeypatch.setattr("fxprune.controllers.slopes._DOUBT", 0.0)
    found = taught(((-3, 5, 0), (HALF, HALF, 1)), groups=[0, 0, 0])
    alive = torch.tensor([True, False, True])
    assert found.effects(alive)[2] == pytest.approx(-3.0)
    assert found.effects(ALL)[2] == pytest.approx(1.0)


def test_in_doubt_a_structure_helps() -> None:
    """Slopes of either sign by turns: noise, which must not remove what costs nothing."""
    steps = [((slope,), (HALF,)) for slope in (1.0, -1.0, 1.0)]
    assert taught(*steps, groups=[0]).effects(ALL[:1]).item() < 0
    certain = [((1.0,), (HALF,))] * 10
    assert taught(*certain, groups=[0]).effects(ALL[:1]).item() > 0


def test_the_share_that_helps_is_of_those_seen() -> None:
    found = taught(((-1.0, 1.0, -9.0, -1.0), (HALF, HALF, 1, 0)), groups=[0, 0, 0, 0])
    everything = torch.ones(4, dtype=torch.bool)
    assert found.helping(everything) == pytest.approx(2 / 3)
    assert found.helping(torch.tensor([False, False, True, False])) == 0


@pytest.mark.usefixtures("certain")
def test_what_does_not_count_changes_nothing() -> None:
    found = Slopes(torch.tensor([0, 1]))
    counted = torch.tensor([True, False])
    found.add(gates_of(1, 1), gates_of(HALF, HALF), counted)
    assert found.effects(ALL[:2]).tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.usefixtures("certain")
def test_windows_forget() -> None:
    found = Slopes(torch.tensor([0]), windows=(1, 1, 1))
    for value in (5.0, 1.0):
        for gate in (0, HALF, 1):
            found.add(gates_of(value), gates_of(gate), ALL[:1])
    assert found.effects(ALL[:1]).item() == pytest.approx(1.0)


def test_taking_units_keeps_what_is_known_of_them() -> None:
    steps = [((1.0, 2.0, 3.0), (gate,) * 3) for gate in (0, HALF, 1)]
    found, alone = (taught(*steps, groups=[0, 0, 1]), taught(*steps, groups=[0, 0, 1]))
    found.take(torch.tensor([1, 2]), torch.tensor([0, 1]))
    alive = torch.tensor([False, True, True])
    assert torch.equal(found.effects(ALL[:2]), alone.effects(alive)[1:])


def test_a_state_comes_back() -> None:
    found, other = taught(((1, 2), (HALF, 0)), groups=[0, 0]), Slopes(torch.tensor([0, 0]))
    other.load_state_dict(found.state_dict())
    assert torch.equal(found.effects(ALL[:2]), other.effects(ALL[:2]))
    with pytest.raises(RuntimeError):
        Slopes(torch.zeros(3, dtype=torch.int64)).load_state_dict(found.state_dict())
