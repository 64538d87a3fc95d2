"""Subclasses of BatchNorm that are traced through: plain modules again, where they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close, assert_cost, random_keep, run
from small_nets import image
from torch import Tensor, nn

from fxprune import auto_gate


class NormAct(nn.BatchNorm2d):
    """A norm with its activation, written out as libraries do."""

    def __init__(self, width: int, **settings: Any) -> None:
        super().__init__(width, **settings)
        self.act = nn.PReLU(width)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "expected 4 axes")
        batch = self.training or self.running_mean is None
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        kept = not self.training or self.track_running_stats
        mean, variance = (self.running_mean, self.running_var) if kept else (None, None)
        norm = F.batch_norm(
            x, mean, variance, self.weight, self.bias, batch, self.momentum, self.eps
        )
        return self.act(norm)


class AlwaysFixed(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class ScaledTwice(NormAct):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight * 2
        y = F.batch_norm(x, self.running_mean, self.running_var, w, self.bias, self.training)
        return self.act(y)


class OtherMomentum(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        w, b = self.weight, self.bias
        return F.batch_norm(x, self.running_mean, self.running_var, w, b, self.training, 0.5)


def net(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    shared = nn.Sequential(nn.Conv2d(8, 8, 3), norm)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, shared, nn.Conv2d(8, 4, 1)).double()
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        if tensor is not None:
            nn.init.uniform_(tensor, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(
    ("norm", "modes"),
    [
        (NormAct(8), 1),
        (NormAct(8, affine=False), 1),
        (NormAct(8, track_running_stats=False), 1),
        (NormAct(8, eps=1e-2, momentum=0.3), 1),
        (AlwaysFixed(8), 1),
        (ScaledTwice(8), 2),
        (OtherMomentum(8), 2),
    ],
    ids=lambda value: str(value).partition("(")[0],
)
def test_traced_norms(norm: nn.Module, modes: int) -> None:
    model, x = net(norm), image()
    gated = auto_gate(model, x)
    kinds = {type(m) for m in gated.modules() if isinstance(m, nn.BatchNorm2d)}
    assert kinds == ({nn.BatchNorm2d} if isinstance(norm, NormAct) and modes == 1 else set())
    assert len(gated.plan.graphs) == modes
    state = model.state_dict()
    same = {
        name: torch.equal(t, state[name]) for name, t in gated.state_dict().items() if name in state
    }
    assert all(same.values())
    assert same.keys() >= {n for n, _ in model.named_parameters()}
    for training in (True, False, True, False):  # running statistics move in between
        for network in (gated, model):
            network.train(training)
        assert_close(run(gated, x), run(model, x), f"open gates, training {training}")
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    assert_cost(gated, compact, x)
    for training in (True, False, True, False):
        for network in (gated, compact):
            network.train(training)
        assert_close(run(compact, x), run(gated, x), f"compact, training {training}")


def test_capture_changes_neither_the_model_nor_its_counters() -> None:
    model = net(NormAct(8))
    before = copy.deepcopy(model.state_dict())
    auto_gate(model, image())
    assert type(model[1]) is NormAct
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
