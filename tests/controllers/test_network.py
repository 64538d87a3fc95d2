"""The controller network: any groups, orthogonal tokens, its own random numbers."""

from __future__ import annotations

import pytest
import torch
from controllers.loops import nothing_random
from torch import nn

from fxprune.controllers.network import ControllerNetwork

SIZES = {
    "one group": [5],
    "one unit": [1],
    "units alone": [1, 1, 1],
    "uneven": [3, 1, 512, 7, 64],
    "more groups than dimensions": [1 + i % 9 for i in range(80)],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_every_unit_gets_a_logit(sizes: list[int]) -> None:
    network = ControllerNetwork(sizes, seed=0)
    logits = network()
    assert logits.shape == (sum(sizes),)
    assert bool(torch.isfinite(logits).all())
    assert len(set(logits.tolist())) > 0.9 * len(logits), "units of a group can differ"
    logits.square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        # Nothing comes before the first token, so a single one leaves no trace in what carries on.
        if len(sizes) > 1 or not name.startswith("gru.weight_hh"):
            assert bool(parameter.grad.any()), name


def test_logits_come_group_after_group() -> None:
    sizes = [3, 1, 6]
    network = ControllerNetwork(sizes, seed=0)
    with torch.no_grad():
        network.heads[1].weight.fill_(0)
        logits = network().split(sizes)
    assert bool((logits[1] == 0).all())
    assert bool((logits[0] != 0).all())
    assert bool((logits[2] != 0).all())


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 80, 200])
def test_tokens_are_orthogonal_and_fixed(count: int) -> None:
    network = ControllerNetwork([2] * count, seed=0)
    assert network.tokens.shape == (count, 64)
    small = network.tokens @ network.tokens.T if count <= 64 else network.tokens.T @ network.tokens
    torch.testing.assert_close(small, torch.eye(len(small)), rtol=0, atol=1e-5)
    assert "tokens" not in dict(network.named_parameters())
    assert "tokens" in network.state_dict()


def test_sizes_of_the_layers_are_those_of_the_paper() -> None:
    network = ControllerNetwork([4, 9], seed=0)
    assert (network.gru.input_size, network.gru.hidden_size) == (64, 128)
    assert network.gru.bidirectional
    assert network.norm.normalized_shape == (256,)
    assert [(head.in_features, head.out_features) for head in network.heads] == [(256, 4), (256, 9)]


def test_a_group_knows_of_the_groups_around_it() -> None:
    network = ControllerNetwork([2] * 5, seed=0)
    with torch.no_grad():
        before = network().reshape(5, 2)
        for moved in (0, 4):
            kept = network.tokens[moved].clone()
            network.tokens[moved] *= -1
            after = network().reshape(5, 2)
            network.tokens[moved] = kept
            assert bool((after != before).any(dim=1).all()), "both ways, from one end to the other"


def test_it_is_made_by_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with nothing_random():
        first = ControllerNetwork([4, 2], seed=7)
    torch.manual_seed(99)
    assert seeded == [99], "nor is the random state of accelerators touched"
    same, other = ControllerNetwork([4, 2], seed=7), ControllerNetwork([4, 2], seed=8)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name]), name
        if not name.startswith("norm."):
            assert not torch.equal(tensor, other.state_dict()[name]), name


def test_a_forward_is_deterministic_and_draws_nothing() -> None:
    network = ControllerNetwork([4, 2], seed=0).train()
    with nothing_random():
        assert torch.equal(network(), network())


def test_low_precision_around_it_changes_nothing() -> None:
    """A user may hold autocast open over the whole step."""
    network = ControllerNetwork([4, 2], seed=0)
    expected = network()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network()
        assert torch.is_autocast_enabled("cpu"), "the user's block goes on"
    assert logits.dtype is torch.float32
    assert torch.equal(logits, expected)


def test_it_is_an_ordinary_module() -> None:
    network, fresh = ControllerNetwork([4, 2], seed=0), ControllerNetwork([4, 2], seed=1)
    fresh.load_state_dict(network.state_dict())
    assert torch.equal(network(), fresh())
    assert isinstance(network, nn.Module)
