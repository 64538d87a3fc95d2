"""Ends of the random test networks: from (N, C, *size) to what the network returns."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from random_convs import ConvUnit, activation
from random_draw import Block, Draw, Shape, nd
from torch import Tensor, nn


class FlattenHead(Block):
    """Everything flattened, in one of five spellings, then a linear layer."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("head_flatten")
        size = shape.size
        self.pool: nn.Module | None = None
        if draw.chance(0.5):
            size = tuple(draw.rng.randint(1, 3) for _ in size)
            self.pool = nd("AdaptiveAvgPool", draw.dim)(size)
        self.width = shape.channels * math.prod(size)
        self.out_channels = draw.channels(10)
        self.module = nn.Flatten()
        self.fc = nn.Linear(self.width, self.out_channels)
        self.style = draw.pick(("module", "method", "function", "view", "literal"))
        self.note = self.style

    def flatten(self, x: Tensor) -> Tensor:
        if self.style == "module":
            y: Tensor = self.module(x)
            return y
        if self.style == "method":
            return x.flatten(1)
        if self.style == "function":
            return torch.flatten(x, start_dim=1)
        if self.style == "view":
            return x.contiguous().view(x.size(0), -1)
        return x.reshape(-1, self.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = self.pool(x)
        y: Tensor = self.fc(self.flatten(x))
        return y


class GlobalPool(nn.Module):
    """(N, C, *size) to (N, C) by a mean, a pool that is flattened or squeezed, or the maximum."""

    def __init__(self, draw: Draw) -> None:
        super().__init__()
        self.axes = tuple(range(2, 2 + draw.dim))
        self.function = f"adaptive_avg_pool{draw.dim}d"
        self.pool = nd("AdaptiveMaxPool", draw.dim)(1)
        self.style = draw.pick(("mean", "module", "function", "amax", "flat mean"))

    def extra_repr(self) -> str:
        return self.style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "mean":
            return x.mean(dim=self.axes)
        if self.style == "amax":
            return x.amax(self.axes)
        if self.style == "flat mean":
            return x.flatten(2).mean(-1)
        if self.style == "module":
            return torch.flatten(self.pool(x), 1)
        y: Tensor = getattr(F, self.function)(x, 1)
        for _ in self.axes:
            y = y.squeeze(-1)
        return y


class GapHead(Block):
    """Global pooling, maybe dropout, a linear layer."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("head_gap")
        self.out_channels = draw.channels(10)
        self.pool = GlobalPool(draw)
        self.dropout = nn.Dropout(0.2) if draw.chance(0.3) else None
        self.fc = nn.Linear(shape.channels, self.out_channels, bias=draw.chance(0.8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        if self.dropout is not None:
            x = self.dropout(x)
        y: Tensor = self.fc(x)
        return y


class MlpHead(Block):
    """Global pooling, then linear, batch norm, activation, dropout, linear."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("head_mlp")
        hidden = draw.channels()
        self.out_channels = draw.channels(10)
        self.layers = nn.Sequential(
            GlobalPool(draw),
            nn.Linear(shape.channels, hidden, bias=draw.chance(0.5)),
            nn.BatchNorm1d(hidden),
            activation(draw, hidden),
            nn.Dropout(0.3),
            nn.Linear(hidden, self.out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class MapHead(Block):
    """A map of class scores, as segmentation returns it, maybe enlarged."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("head_map")
        self.out_channels = draw.channels(10)
        self.unit = ConvUnit(draw, shape.channels, self.out_channels, kernel=1, act=False)
        self.factor = 2 if shape.can_grow and draw.chance(0.4) else 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.unit(x)
        return y if self.factor == 1 else F.interpolate(y, scale_factor=self.factor)


HEADS: tuple[type[Block], ...] = (FlattenHead, GapHead, MlpHead, MapHead)
