"""The whole form of a shrunk model: the original network with its masks and its weights."""

from __future__ import annotations

import copy

import pytest
import torch
from gate_checks import no_dropout
from random_nets import random_net
from shrinking import NETS, Training, further
from torch import nn

import fxprune
from fxprune.errors import LoadError, VerificationError
from fxprune.whole import whole_form


@pytest.mark.parametrize("branches", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_random_networks_after_two_shrinks(seed: int, branches: bool) -> None:
    model, x = random_net(seed)
    no_dropout(model)
    gated = fxprune.auto_gate(model, x, branches=branches)
    for number in range(2):
        further(gated, 0.6, 10 * seed + number)
        gated.shrink_()
        with torch.no_grad():
            for parameter in gated.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    whole = whole_form(gated, model)
    assert not whole.was_shrunk
    assert whole.cost() == gated.cost()
    fxprune.verify(whole, gated.compact(), x)


@pytest.mark.parametrize("name", NETS)
def test_what_was_trained_after_a_shrink(name: str) -> None:
    run = Training.of(name, "sgd")
    for seed in range(2):
        further(run.gated, 0.7, seed)
        run.gated.shrink_(run.optimizer)
        for _ in range(2):
            run.step()
    # Of the same architecture: where weights are masked, others must not count.
    whole = whole_form(run.gated.eval(), NETS[name]().double().eval())
    fxprune.verify(whole, run.gated.compact(), run.x)


def test_units_that_are_closed_but_not_cut() -> None:
    model, x = random_net(1)
    no_dropout(model)
    gated = fxprune.auto_gate(model, x)
    further(gated, 0.7, 0)
    gated.shrink_()
    further(gated, 0.7, 1)
    whole = whole_form(gated, model)
    assert all(torch.equal(whole.keep[name], mask) for name, mask in gated.original_keep.items())
    fxprune.verify(whole, gated.compact(), x)


def test_a_weight_in_a_wrong_place_is_seen() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    gated = fxprune.auto_gate(model, torch.rand(1, 4))
    gated.set_keep({gated.groups[0].name: torch.arange(8) % 2 == 0})
    gated.shrink_()
    compact = gated.compact()
    with torch.no_grad():
        gated.get_submodule("2").weight.copy_(gated.get_submodule("2").weight.flip(1))
    with pytest.raises(VerificationError):
        fxprune.verify(whole_form(gated, model), compact, torch.rand(5, 4))


def test_another_architecture_is_refused() -> None:
    def net(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    gated = fxprune.auto_gate(net(8), torch.rand(1, 4))
    gated.set_keep({gated.groups[0].name: torch.arange(8) < 5})
    gated.shrink_()
    other = net(9)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(LoadError, match="not the one that was gated"):
        whole_form(gated, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
