"""What the slopes at sampled gates tell about the slope of the expected loss by theta."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers.slopes import Slopes
from fxprune.gated import GatedModule

N = 6


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


def losses_and_slopes(loss) -> tuple[Tensor, Tensor, Tensor]:
    """Return every mask, shape (2**N, N), its loss and the slopes of the loss by its gates."""
    gated, x, y = tiny()
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=N)), dtype=torch.float64)
    values, slopes = [], []
    for mask in masks:
        gated.sampled_gates = mask.clone().requires_grad_()
        value = loss(gated(x), y)
        value.backward()
        values.append(value.detach())
        slopes.append(gated.sampled_gates.grad)
    return masks, torch.stack(values), torch.stack(slopes)


def exact(masks: Tensor, values: Tensor, theta: Tensor) -> Tensor:
    """Return the gradient of the expected loss by theta: it is linear in each of them."""
    found = []
    for i in range(N):
        others = [j for j in range(N) if j != i]
        chance = torch.where(masks[:, others] > 0, theta[others], 1 - theta[others]).prod(1)
        found.append((chance * values * (2 * masks[:, i] - 1)).sum())
    return torch.stack(found)


def estimated(masks: Tensor, slopes: Tensor, theta: Tensor) -> Tensor:
    """Return what the estimate tends to: the mean over both ends of the mean slopes there."""
    chance = torch.where(masks > 0, theta, 1 - theta).prod(1)
    found = []
    for i in range(N):
        ends = []
        for end in (0, 1):
            at = (masks[:, i] == end) * chance
            ends.append((at * slopes[:, i]).sum() / at.sum())
        found.append(sum(ends) / 2)
    return torch.stack(found)


THETAS = {
    "halves": torch.full((N,), 0.5, dtype=torch.float64),
    "between": torch.linspace(0.1, 0.9, N, dtype=torch.float64),
    "nearly there": torch.tensor([0.01, 0.99, 0.5, 0.02, 0.98, 0.9], dtype=torch.float64),
}


@pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
def test_the_estimate_is_unbiased_where_the_loss_is_quadratic_in_each_gate(theta) -> None:
    masks, values, slopes = losses_and_slopes(squares)
    torch.testing.assert_close(
        estimated(masks, slopes, theta), exact(masks, values, theta), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("theta", THETAS.values(), ids=THETAS)
def test_its_bias_for_cross_entropy_is_small_where_no_gate_decides_alone(theta) -> None:
    masks, values, slopes = losses_and_slopes(entropy)
    true = exact(masks, values, theta)
    off = (estimated(masks, slopes, theta) - true).abs().max()
    assert off < 0.05 * true.abs().max()


def test_the_plain_mean_of_the_slopes_is_biased() -> None:
    """Or there would be no need to keep the two ends apart."""
    masks, values, slopes = losses_and_slopes(squares)
    theta = THETAS["between"]
    chance = torch.where(masks > 0, theta, 1 - theta).prod(1)
    mean = (chance[:, None] * slopes).sum(0)
    true = exact(masks, values, theta)
    assert (mean - true).abs().max() > 0.1 * true.abs().max()


def test_running_means_find_it_by_sampling() -> None:
    """With windows as long as the run, and the prior's weight against so many samples."""
    masks, values, slopes = losses_and_slopes(squares)
    theta = THETAS["halves"]
    found = Slopes(torch.zeros(N, dtype=torch.int64), windows=(10**9, 10**9))
    rows = torch.randint(len(masks), (4000,), generator=torch.Generator().manual_seed(0))
    counted = torch.ones(N, dtype=torch.bool)
    for row in rows.tolist():
        found.add(slopes[row], masks[row] > 0, counted)
    true = exact(masks, values, theta)
    spread = slopes.std(0) / (len(rows) / 2) ** 0.5
    assert ((found.effects() - true).abs() < 4 * spread).all()


def test_rare_ends_borrow_from_their_group() -> None:
    found = Slopes(torch.tensor([0, 0, 1]))
    sample = torch.tensor([False, True, True])
    found.add(torch.tensor([-3.0, 0.5, 0.25], dtype=torch.float64), sample, torch.ones(3).bool())
    # Unit 0 was seen closed, unit 1 was not but is of its group, unit 2 has no such neighbour.
    torch.testing.assert_close(
        found.effects(), torch.tensor([-1.5, -1.25, 0.125], dtype=torch.float64)
    )


def test_of_the_group_only_those_alive_count() -> None:
    found = Slopes(torch.tensor([0, 0, 0]))
    slopes = torch.tensor([-3.0, 5.0, 0.0], dtype=torch.float64)
    found.add(slopes, torch.tensor([False, False, True]), torch.ones(3).bool())
    alive = torch.tensor([True, False, True])
    assert found.effects(alive)[2] == pytest.approx(-1.5)
    assert found.effects()[2] == pytest.approx(0.5)


def test_what_does_not_count_changes_nothing() -> None:
    found = Slopes(torch.tensor([0, 0]))
    found.add(torch.ones(2).double(), torch.tensor([True, False]), torch.tensor([True, False]))
    found.add(torch.ones(2).double(), torch.tensor([True, True]), torch.tensor([True, False]))
    torch.testing.assert_close(found.effects(), torch.tensor([0.5, 0.0], dtype=torch.float64))


def test_windows_forget() -> None:
    found = Slopes(torch.tensor([0]), windows=(1, 1))
    for value in (5.0, 1.0):
        for end in (True, False):
            found.add(torch.tensor([value]).double(), torch.tensor([end]), torch.tensor([True]))
    torch.testing.assert_close(found.effects(), torch.tensor([1.0], dtype=torch.float64))


def test_taking_units_keeps_what_is_known_of_them() -> None:
    found = Slopes(torch.tensor([0, 0, 1]))
    for end in (True, False):
        found.add(
            torch.tensor([1.0, 2.0, 3.0]).double(), torch.full((3,), end), torch.ones(3).bool()
        )
    found.take(torch.tensor([1, 2]), torch.tensor([0, 1]))
    assert found.effects().tolist() == pytest.approx([2.0, 3.0])


def test_a_state_comes_back() -> None:
    found, other = Slopes(torch.tensor([0, 0])), Slopes(torch.tensor([0, 0]))
    found.add(torch.tensor([1.0, 2.0]).double(), torch.tensor([True, False]), torch.ones(2).bool())
    other.load_state_dict(found.state_dict())
    assert torch.equal(found.effects(), other.effects())
    with pytest.raises(RuntimeError):
        Slopes(torch.zeros(3, dtype=torch.int64)).load_state_dict(found.state_dict())
