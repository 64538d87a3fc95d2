"""A YOLO-style net: gated, cut, equal; the train graph returns feature maps, the eval graph boxes."""

from __future__ import annotations

import copy

import pytest
import torch
from gate_checks import assert_close, assert_partition, random_keep, run
from torch import nn
from yolo_model import Yolo

from fxprune import auto_gate
from fxprune.gated import GatedModule


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, GatedModule]:
    torch.manual_seed(0)
    model = Yolo().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    return model, auto_gate(model, torch.rand(2, 3, 64, 64, dtype=torch.float64))


@pytest.mark.parametrize("training", [False, True])
def test_gated_equals_compact(pair: tuple[nn.Module, GatedModule], training: bool) -> None:
    model, gated = (copy.deepcopy(m).train(training) for m in pair)
    x = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    assert_close(run(copy.deepcopy(gated), x), run(copy.deepcopy(model), x), "open gates")
    for seed, share in enumerate((0.3, 0.7)):
        gated.set_keep(random_keep(gated, share, seed))
        compact = gated.compact()
        assert_close(run(copy.deepcopy(compact), x), run(copy.deepcopy(gated), x), "compact")


def test_nearly_everything_is_prunable(pair: tuple[nn.Module, GatedModule]) -> None:
    gated = pair[1]
    assert_partition(gated)
    members = {m.fqn for group in gated.groups for m in group.members}
    total = sum(p.numel() for p in gated.parameters())
    free = sum(p.numel() for name, p in gated.named_parameters() if name in members)
    assert free / total > 0.98
