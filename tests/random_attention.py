"""Blocks of the random test networks that keep the size and reweigh, shift or reorder channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from random_convs import ConvUnit, activation
from random_draw import Block, Draw, Shape, nd
from torch import Tensor, nn


class SqueezeExcite(Block):
    """Squeeze-and-excitation with 1x1 convolutions or with linear layers."""

    share = 2.5

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        width, hidden = shape.channels, draw.rng.randint(2, 8)
        self.dim = draw.dim
        self.axes = tuple(range(2, 2 + draw.dim))
        self.kind = draw.pick(("conv", "linear_view", "linear_unsqueeze"))
        draw.use(f"se_{self.kind}")
        if self.kind == "conv":
            layer = nd("Conv", draw.dim)
            reduce, expand = layer(width, hidden, 1), layer(hidden, width, 1)
        else:
            reduce, expand = nn.Linear(width, hidden), nn.Linear(hidden, width)
        gate = draw.pick((nn.Sigmoid, nn.Hardsigmoid, nn.Tanh))()
        self.excite = nn.Sequential(reduce, activation(draw, hidden), expand, gate)
        self.pool = nd("AdaptiveAvgPool", draw.dim)(1) if draw.chance(0.5) else None
        self.style = draw.pick(("x * s", "s * x", "s.expand_as(x)"))
        self.literal = draw.chance(0.5)
        self.out_channels = width
        self.note = f"{self.kind}, {self.style}"

    def squeeze(self, x: Tensor) -> Tensor:
        """Average over the pixels: (N, C, 1, 1) for convolutions, (N, C) for linear layers."""
        if self.pool is not None:
            y: Tensor = self.pool(x)
            return y if self.kind == "conv" else y.flatten(1)
        return x.mean(self.axes, keepdim=self.kind == "conv")

    def forward(self, x: Tensor) -> Tensor:
        s: Tensor = self.excite(self.squeeze(x))
        ones = (1,) * self.dim
        if self.kind == "linear_view":
            width = self.out_channels if self.literal else x.size(1)
            s = s.view(x.size(0), width, *ones)
        elif self.kind == "linear_unsqueeze" and self.literal:
            for _ in ones:
                s = s.unsqueeze(-1)
        elif self.kind == "linear_unsqueeze":
            s = s[(slice(None), slice(None), *(None for _ in ones))]
        if self.style == "s.expand_as(x)":
            return x * s.expand_as(x)
        return x * s if self.style == "x * s" else s * x


class SpatialAttention(Block):
    """A map made of the mean and the largest channel, convolved and multiplied in (CBAM)."""

    share = 1.5

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("spatial_attention")
        self.conv = nd("Conv", draw.dim)(2, 1, 3, padding=1, bias=draw.chance(0.5))
        self.method = draw.pick(("amax", "max"))
        self.out_channels = shape.channels
        self.note = self.method

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        top = x.amax(1, keepdim=True) if self.method == "amax" else x.max(1, keepdim=True)[0]
        attention: Tensor = self.conv(torch.cat([mean, top], dim=1))
        return x * attention.sigmoid()


class SoftmaxChannels(Block):
    """A softmax over the channels of a convolution, alone or multiplied with its input."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("softmax_channels")
        self.unit = ConvUnit(draw, shape.channels, shape.channels, act=False)
        self.style = draw.pick(("method", "function", "module"))
        self.softmax = nn.Softmax(dim=1)
        self.multiply = draw.chance(0.6)
        self.out_channels = shape.channels
        self.note = f"{self.style}, {'times x' if self.multiply else 'alone'}"

    def forward(self, x: Tensor) -> Tensor:
        y = self.unit(x)
        if self.style == "method":
            y = y.softmax(dim=1)
        elif self.style == "function":
            y = F.softmax(y, dim=1)
        else:
            y = self.softmax(y)
        return x * y if self.multiply else y


class BiasMap(Block):
    """A learned (1, C, 1, 1) or (1, C, H, W) that is added, as positions are in transformers."""

    share = 1.5

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        everywhere = draw.chance(0.6)
        draw.use("bias_map" if everywhere else "position_map")
        size = (1 for _ in shape.size) if everywhere else shape.size
        self.map = nn.Parameter(draw.normal(1, shape.channels, *size, std=0.7))
        self.style = draw.pick(("x + map", "map + x", "x - map"))
        self.out_channels = shape.channels
        self.note = self.style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "x - map":
            return x - self.map
        return x + self.map if self.style == "x + map" else self.map + x


class Constant(Block):
    """Numbers, or a buffer of numbers per channel, that are added and multiplied."""

    share = 1.5
    shift: Tensor | None

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        values = None
        if draw.chance(0.4):
            values = draw.normal(1, shape.channels, *(1 for _ in shape.size))
        draw.use("add_constant" if values is None else "constant_buffer")
        self.register_buffer("shift", values, persistent=draw.chance(0.5))
        self.value = draw.pick((0.5, -0.25, 1.0, 1))
        self.style = draw.pick(("x + c", "c - x", "add_", "affine"))
        self.out_channels = shape.channels
        self.note = f"c = {self.value}, {self.style}" if self.shift is None else "buffer"

    def forward(self, x: Tensor) -> Tensor:
        if self.shift is not None:
            return (x - self.shift) * 0.8
        if self.style == "x + c":
            return x + self.value
        if self.style == "c - x":
            return self.value - x
        if self.style == "add_":
            y = x * 0.9
            y += self.value
            return y
        return x.mul(0.7).add(self.value, alpha=2)


class Clamp(Block):
    """A tensor cut at one or two bounds, either of which may differ from 0."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("clamp")
        self.style = draw.pick(("min", "both", "clip", "relu6"))
        self.out_channels = shape.channels
        self.note = self.style

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "min":
            return x.clamp(min=0.2)
        if self.style == "both":
            return torch.clamp(x, -0.8, 1.5)
        return torch.clip(x, max=1.0) if self.style == "clip" else F.relu6(x + 0.5)


class PadChannels(Block):
    """Channels of one value put before or after those of the tensor, usually convolved after."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("pad_channels")
        extra = draw.rng.randint(1, draw.max_channels - shape.channels)
        before = draw.rng.randint(0, extra)
        self.pad = (*(0 for _ in range(2 * draw.dim)), before, extra - before)
        self.value = draw.pick((0.0, 0.0, 0.4))
        wide = shape.channels + extra
        self.unit = ConvUnit(draw, wide, draw.channels()) if draw.chance(0.7) else None
        self.out_channels = self.unit.out_channels if self.unit else wide
        self.note = f"pad {self.pad} with {self.value}"

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        return shape.channels < draw.max_channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, self.pad, value=self.value)
        return y if self.unit is None else self.unit(y)


class ChannelShuffle(Block):
    """A channel shuffle, in one of three spellings, then a dense or grouped convolution."""

    share = 2.5

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        self.groups = draw.pick(shape.groups)
        self.style = draw.pick(("size", "minus1", "literal"))
        draw.use(f"shuffle_{self.style}")
        self.shape = shape
        self.out_channels = draw.channels(multiple_of=self.groups)
        # Grouped after the shuffle, as in ShuffleNet, or dense.
        groups = self.groups if draw.chance(0.5) else 1
        if groups > 1:
            draw.use("grouped_conv")
        self.unit = ConvUnit(draw, shape.channels, self.out_channels, groups=groups)
        self.note = f"{self.groups} groups, {self.style}"

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        return bool(shape.groups)

    def shuffle(self, x: Tensor) -> Tensor:
        channels, size = self.shape
        if self.style == "size":
            now = x.size()
            pixels = [now[axis] for axis in range(2, 2 + len(size))]
            y = x.view(now[0], self.groups, now[1] // self.groups, *pixels)
            return y.transpose(1, 2).contiguous().view(now[0], now[1], *pixels)
        if self.style == "minus1":
            pixels = [x.size(axis) for axis in range(2, 2 + len(size))]
            y = x.view(x.size(0), self.groups, -1, *pixels)
            return torch.transpose(y, 1, 2).contiguous().view(x.size(0), -1, *pixels)
        y = x.reshape(-1, self.groups, channels // self.groups, *size)
        return y.transpose(1, 2).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(self.shuffle(x))
