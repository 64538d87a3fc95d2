from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from fxprune.api import auto_gate
from fxprune.errors import ConfigError, InputError
from fxprune.explain import Explanation, explain

IMAGE = torch.zeros(1, 3, 8, 8)


def net() -> nn.Sequential:
    """One group of eight channels; the last bias is the only parameter that is all frozen."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


class Heads(nn.Module):
    """Three outputs that differ in nothing but their number, and a layer that is not used."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))
        self.unused = nn.Linear(6, 5)

    def forward(self, x):
        return [head(x) for head in self.heads]


def test_shares_are_those_computed_by_hand():
    found = explain(net(), IMAGE)
    total = 8 * 3 * 9 + 8 + 8 + 8 + 4 * 8 + 4
    assert found.params == total
    assert found.prunable_params == pytest.approx((total - 4) / total)
    assert found.macs == 36 * (8 * 27 + 4 * 8)
    assert found.prunable_macs == 1.0
    assert found.input_shapes == ((1, 3, 8, 8),)
    assert [str(group) for group in found.groups] == ["0 (8 channel units, 5 axes)"]
    assert found.frozen == auto_gate(net(), IMAGE).frozen


def test_what_is_ignored_is_not_prunable():
    found = explain(net(), IMAGE, ignore="0")
    assert (found.prunable_params, found.prunable_macs, found.groups) == (0.0, 0.0, ())
    text = str(found)
    assert "Groups\n\nNone." in text
    assert "the caller asked to ignore it" in text


def test_operators_between_frozen_axes_count_as_not_prunable():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    found = explain(model, IMAGE, ignore="0")
    assert found.macs == 36 * (5 * 27 + 6 * 5 + 2 * 6)
    assert found.prunable_macs == pytest.approx(1 - 5 * 27 / (5 * 27 + 6 * 5 + 2 * 6))


def test_modules_say_what_is_prunable():
    modules = {module.name: module for module in explain(net(), IMAGE).modules}
    assert [(m.kind, m.params, m.prunable_params) for m in modules.values()] == [
        ("Conv2d", 224, 224),
        ("BatchNorm2d", 16, 16),
        ("Conv2d", 36, 32),
    ]
    assert [(p.name, p.shape, p.axes) for p in modules["3"].parameters] == [
        ("weight", (4, 8, 1, 1), (1,)),
        ("bias", (4,), ()),
    ]


def test_the_text_names_totals_groups_and_reasons():
    text = str(explain(net(), IMAGE))
    assert [line for line in text.splitlines() if line.startswith("MACs at input 1x3x8x8")]
    assert "0        channel        8  0.weight[0], 0.bias[0], 1.weight[0] and 2 more" in text
    assert "0.weight[1]  3 of 3       it reads an input of the model" in text


def test_axes_that_differ_in_numbers_only_share_a_row():
    found = explain(Heads(), torch.zeros(1, 6))
    assert len(found.frozen) > 6
    rows = [line for line in str(found).splitlines() if "heads.0.weight[0] and 2 like it" in line]
    assert len(rows) == 1
    assert "it is an output of the model" in rows[0]


def test_unused_parameters_are_listed():
    modules = {module.name: module for module in explain(Heads(), torch.zeros(1, 6)).modules}
    assert (modules["unused"].kind, modules["unused"].params) == ("Linear", 35)
    assert modules["unused"].prunable_params == 0


def test_markdown_holds_the_same_sections():
    text = explain(net(), IMAGE).to_markdown()
    assert [line for line in text.splitlines() if line.startswith("##")] == [
        "## Summary",
        "## Modules",
        "## Groups",
        "## Frozen axes",
    ]
    assert "| parameters " in text


def test_the_dict_is_json():
    found = explain(net(), IMAGE)
    data = json.loads(json.dumps(found.to_dict()))
    assert data == found.to_dict()
    assert set(data) == set(Explanation.__dataclass_fields__)
    assert data["groups"][0]["members"][0] == {"fqn": "0.weight", "dim": 0}
    assert data["frozen"][0]["reason"] == "it reads an input of the model"
    assert data["modules"][0]["parameters"][0]["prunable_axes"] == [0]


def test_a_gated_model_is_explained_as_it_was_gated():
    model = net()
    gated = auto_gate(model, IMAGE, ignore="0")
    assert explain(gated) == explain(model, IMAGE, ignore="0")


def test_masks_change_nothing():
    gated = auto_gate(net(), IMAGE)
    before = explain(gated)
    gated.set_keep({"0": torch.arange(8) < 2})
    assert explain(gated) == before


def test_resnet18_with_a_guessed_input():
    found = explain(resnet18())
    assert found.input_shapes == ((1, 3, 224, 224),)
    assert (found.params, found.macs) == (11_689_512, 1_814_073_344)
    assert found.prunable_params == pytest.approx(1 - 1000 / 11_689_512)
    assert found.prunable_macs == 1.0
    assert len(found.groups) == 12


@pytest.mark.parametrize("options", [{"example_inputs": IMAGE}, {"ignore": "0"}])
def test_a_gated_model_takes_no_options(options):
    with pytest.raises(ConfigError, match="takes no 'example_inputs' and no 'ignore'"):
        explain(auto_gate(net(), IMAGE), **options)


def test_inputs_must_fit():
    with pytest.raises(InputError, match="does not run on these example inputs"):
        explain(net(), torch.zeros(1, 5, 8, 8))
