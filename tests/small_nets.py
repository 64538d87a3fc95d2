"""Small hand-written networks whose groups are known, for tests that look at one thing at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AuxHead",
    "Concat",
    "Depthwise",
    "Grouped",
    "InPlace",
    "LayerNormMlp",
    "Residual",
    "Shuffle",
    "chain",
    "image",
    "rows",
]


def image(channels: int = 3, size: int = 6, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, size, size, dtype=torch.float64)


def rows(width: int = 6, batch: int = 5) -> Tensor:
    return torch.randn(batch, width, dtype=torch.float64)


def wake(model: nn.Module) -> Any:
    """Make a model float64 and give its norms statistics and parameters of their own."""
    model.double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.5)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
        elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.bias, 0, 0.5)
    return model.eval()


def chain(act: nn.Module | None = None) -> nn.Sequential:
    """conv(3, 8) - BatchNorm - activation - conv(8, 4)."""
    return wake(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU() if act is None else act,
            nn.Conv2d(8, 4, 3, padding=1),
        )
    )


class Residual(nn.Module):
    """A stem, one residual block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.inner = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.outer = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1, bias=False)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.norm(self.outer(self.inner(x).sigmoid())))
        return self.head(x)


class Concat(nn.Module):
    """Two branches, joined; the second is read by itself too."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 5, 1, bias=False)
        self.right = nn.Conv2d(3, 7, 1, bias=False)
        self.join = nn.Conv2d(12, 4, 1, bias=False)
        self.alone = nn.Conv2d(7, 4, 1, bias=False)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        return self.join(torch.cat([left, right], 1)) + self.alone(right)


class Depthwise(nn.Module):
    """A depthwise convolution with two outputs per input channel."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 6, 1, bias=False)
        self.depth = nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False)
        self.project = nn.Conv2d(12, 4, 1, bias=False)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.softplus(self.depth(F.relu(self.expand(x)))))


class Grouped(nn.Module):
    """A convolution in two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 8, 1, bias=False)
        self.grouped = nn.Conv2d(8, 12, 3, padding=1, groups=2, bias=False)
        self.project = nn.Conv2d(12, 4, 1, bias=False)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.relu(self.grouped(F.relu(self.expand(x)))))


class Shuffle(nn.Module):
    """A channel shuffle over two groups, written with sizes taken from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 8, 1, bias=False)
        self.read = nn.Conv2d(8, 4, 1, bias=False)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.read(x)


class LayerNormMlp(nn.Module):
    """linear - LayerNorm - linear, the norm as a module or as a function."""

    def __init__(self, function: bool = False) -> None:
        super().__init__()
        self.make = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)
        self.read = nn.Linear(10, 4)
        self.function = function
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.make(x)
        if self.function:
            x = F.layer_norm(x, (10,), self.norm.weight, self.norm.bias)
        else:
            x = self.norm(x)
        return self.read(x)


class InPlace(nn.Module):
    """An in-place activation behind the value that two convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 8, 1)
        self.act = nn.SiLU(inplace=True)
        self.one = nn.Conv2d(8, 4, 1)
        self.two = nn.Conv2d(8, 4, 1)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.make(x)
        self.act(y)
        return self.one(y) + self.two(y)


class AuxHead(nn.Module):
    """As in GoogLeNet: a second head, and a second output, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 6, 3, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(8, 5, 1), nn.Softplus(), nn.Flatten(), nn.Linear(180, 3))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        wake(self)

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x)
        z = self.head(self.drop(self.body(y).sigmoid().mean((2, 3))))
        if self.training:
            return z, self.aux(y)
        return z
