"""Small networks and what trains them, for tests of shrinking in the middle of a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gate_checks import random_keep
from torch import Tensor, nn

import fxprune
from fxprune.gated import GatedModule

__all__ = [
    "NETS",
    "OPTIMIZERS",
    "Training",
    "assert_equal_bits",
    "assert_same",
    "close",
    "further",
    "gate",
    "left_of",
]

TIGHT = 1e-11  # relative to the largest magnitude of a tensor, over all steps


class ResidualBlock(nn.Module):
    def __init__(self, width: int, groups: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * width)
        self.deep = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.last = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm(self.first(x)))
        return F.relu(x + self.last(F.hardswish(self.norm2(self.deep(y)))))


def convolutional(groups: int) -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    blocks = [ResidualBlock(8, groups), ResidualBlock(8, groups)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class Transformer(nn.Module):
    """Patches, a class token, positions, MultiheadAttention and an MLP behind LayerNorms."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.places = nn.Parameter(torch.randn(1, 5, 12))
        self.norms = nn.ModuleList([nn.LayerNorm(12) for _ in range(3)])
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(24, 9, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.flatten(1, 2).transpose(1, 2))[0].mean(1))


class Tied(nn.Module):
    """One embedding that reads words and scores them; one norm and one layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 10)
        self.layer, self.norm = nn.Linear(10, 10), nn.GroupNorm(2, 10)
        self.scores = nn.Linear(10, 5, bias=False)
        self.scores.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.words(x.flatten(1).argsort(1)[:, :7] % 5).mean(1)
        for _ in range(2):
            y = y + self.norm(F.relu(self.layer(y)))
        return self.scores(y)


class TwoModes(nn.Module):
    """A second head that is there in training only, which makes two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 9, 3), nn.BatchNorm2d(9), nn.SiLU())
        self.body = nn.Sequential(nn.Conv2d(9, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.head, self.aux = nn.Linear(12, 5), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.head(self.body(x[:, torch.tensor([8, 0, 1, 2, 3, 4, 5, 6, 7])]).mean((2, 3)))
        return y + 0.3 * self.aux(x.amax((2, 3))) if self.training else y


NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: convolutional(1),
    "depthwise": lambda: convolutional(16),
    "grouped": lambda: convolutional(4),
    "transformer": Transformer,
    "recurrent": Recurrent,
    "tied": Tied,
    "two modes": TwoModes,
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=1e-2, eps=1e-3),
    "amsgrad": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True, eps=1e-3, foreach=False),
}


def gate(name: str, dtype: torch.dtype = torch.float64) -> tuple[GatedModule, Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 8, 8, dtype=dtype), torch.arange(6) % 5
    return fxprune.auto_gate(NETS[name]().to(dtype), x), x, y


def further(gated: GatedModule, share: float, seed: int) -> dict[str, Tensor]:
    """Draw masks for a model, and return what they mean in the original."""
    gated.set_keep(random_keep(gated, share, seed))
    return gated.original_keep


def left_of(gated: GatedModule, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a gated model keeps of tensors that are shaped like its parameters."""
    keep = np.concatenate([m.numpy() for m in gated.keep.values()])
    first: dict[int, str] = {}
    small = {}
    for name, parameter in gated.named_parameters(remove_duplicate=False):
        known = first.setdefault(id(parameter), name)
        tensor = tensors[known]
        for dim in range(tensor.dim()):
            if (known, dim) in gated.plan.axes:
                kept = gated.plan.kept(gated.plan.axes[known, dim], keep)
                tensor = tensor.index_select(dim, torch.from_numpy(np.flatnonzero(kept)))
        small[name] = tensor
    return small


def close(actual: Tensor, expected: Tensor, what: str, tight: float = TIGHT) -> None:
    scale = max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=tight * scale, msg=lambda m: f"{what}: {m}"
    )


@dataclass
class Training:
    """A gated model and all that trains it."""

    gated: GatedModule
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    clip: float | None = None

    @classmethod
    def of(cls, name: str, optimizer: str, **kwargs: Any) -> Training:
        gated, x, y = gate(name)
        return cls(gated, OPTIMIZERS[optimizer](gated.parameters()), x, y, **kwargs)

    def copy(self) -> Training:
        gated, optimizer = copy.deepcopy((self.gated, self.optimizer))
        return Training(gated, optimizer, self.x, self.y, self.clip)

    def backward(self) -> Tensor:
        loss = F.cross_entropy(self.gated(self.x), self.y)
        loss.backward()
        return loss.detach()

    def step(self) -> Tensor:
        loss = self.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.gated.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss


def assert_same(small: Training, masked: Training, what: str) -> None:
    """Compare parameters, gradients, buffers and the optimizers' state, where kept."""
    mine = dict(small.gated.named_parameters(remove_duplicate=False))
    theirs = dict(masked.gated.named_parameters())
    held = [
        dict(
            zip(
                [n for n, _ in t.gated.named_parameters()],
                t.optimizer.param_groups[0]["params"],
                strict=True,
            )
        )
        for t in (small, masked)
    ]
    kept = left_of(masked.gated, {n: p.detach() for n, p in theirs.items()})
    for name, tensor in kept.items():
        if name in mine:  # else it went with a branch
            close(mine[name].detach(), tensor, f"{what}: {name}")
    states = [
        {n: t.optimizer.state[p] for n, p in h.items()}
        for t, h in zip((small, masked), held, strict=True)
    ]
    for key in {key for state in states[1].values() for key in state}:
        whole = {n: s[key] for n, s in states[1].items() if s.get(key) is not None}
        if all(whole[n].shape == theirs[n].shape for n in whole):
            whole = left_of(
                masked.gated, {n: whole.get(n, p.detach() * 0) for n, p in theirs.items()}
            )
        for name in states[0]:
            if states[0][name].get(key) is not None:
                close(states[0][name][key], whole[name], f"{what}: {key} of {name}")


def assert_equal_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
