from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune.api import auto_gate
from fxprune.errors import InputError
from fxprune.measure import (
    count_macs,
    count_params,
    gated_inputs,
    input_shapes,
    module_kinds,
)
from fxprune.modes import in_mode


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.mix = nn.Linear(6, 4)

    def forward(self, tokens, scale):
        return self.mix(self.embed(tokens)) * scale


def test_macs_of_known_layers():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 5))
    assert count_macs(net, torch.zeros(2, 3, 3, 3)) == 2 * (8 * 3 * 9 + 8 * 5)
    assert net.training
    assert net[1].num_batches_tracked == 0


def test_macs_of_attention_are_counted():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(1, 5, 8)
    projections, products = 5 * 8 * 8 * 4, 2 * 5 * 5 * 8
    assert count_macs(attention, (x, x, x)) == projections + products


def test_macs_need_inputs_that_fit():
    with pytest.raises(InputError, match="does not run on the example inputs") as caught:
        count_macs(nn.Linear(3, 2), torch.zeros(1, 4))
    assert "(1, 4)" in caught.value.seen


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    assert count_params(nn.Sequential(layer, layer)) == 20


def test_modes_come_back():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3))).train()
    net[1].eval()
    with in_mode(net, training=False):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == [True, True, False, False]


def test_inputs_of_a_gated_model_are_those_it_was_gated_with():
    given = {"tokens": torch.ones(2, 7, dtype=torch.long), "scale": torch.ones(2, 7, 4)}
    args, kwargs = gated_inputs(auto_gate(Tokens(), given))
    assert not args
    assert kwargs["tokens"].dtype is torch.long
    assert not kwargs["tokens"].any()
    assert input_shapes((args, kwargs)) == ((2, 7), (2, 7, 4))
    again = gated_inputs(auto_gate(Tokens(), given))[1]
    assert torch.equal(kwargs["scale"], again["scale"])


def test_kinds_are_those_of_the_plain_modules():
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 4))
    gated = auto_gate(net, torch.zeros(1, 4))
    assert module_kinds(gated)["1"] == "LayerNorm"
    assert module_kinds(net)[""] == "Sequential"
