"""Layers of the random test networks: pools, resamplers, norms and linear layers."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch.nn.functional as F
from random_convs import ConvUnit
from random_draw import Block, Draw, Shape, nd
from torch import Tensor, nn


class Pool(Block):
    """A max, average or adaptive pool, as a module or a function, that halves or keeps the size."""

    share = 2.0
    keeps_size = False

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        kind = draw.pick(("max", "avg", "adaptive"))
        draw.use(f"pool_{kind}")
        shrink = shape.can_shrink and draw.chance(0.8)
        self.out_channels = shape.channels
        self.pool: nn.Module | None = None
        self.kwargs: dict[str, Any] = {"kernel_size": 2} if shrink else {}
        if kind == "adaptive":
            kind = draw.pick(("adaptive_avg", "adaptive_max"))
            self.kwargs = {"output_size": tuple((s + shrink) // (1 + shrink) for s in shape.size)}
        elif not shrink or draw.chance(0.3):
            self.kwargs = {"kernel_size": 3, "stride": 1 + shrink, "padding": 1}
        if draw.chance(0.5):
            name = "".join(part.capitalize() for part in kind.split("_")) + "Pool"
            self.pool = nd(name, draw.dim)(**self.kwargs)
        self.function = f"{kind}_pool{draw.dim}d"
        self.note = f"F.{self.function}, {self.kwargs}"

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            y: Tensor = self.pool(x)
        else:
            y = getattr(F, self.function)(x, **self.kwargs)
        return y


class Upsample(Block):
    """Doubling by a module, a scale factor or a size that is computed from the input."""

    share = 2.0
    keeps_size = False

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        smooth = {1: "linear", 2: "bilinear", 3: "trilinear"}[draw.dim]
        self.mode = draw.pick(("nearest", smooth))
        self.style = draw.pick(("module", "scale", "size"))
        draw.use("upsample_module" if self.style == "module" else "upsample_interpolate")
        self.module = nn.Upsample(scale_factor=2, mode=self.mode)
        self.out_channels = shape.channels
        self.dim = draw.dim
        self.note = f"{self.mode}, {self.style}"

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        return shape.can_grow

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "module":
            y: Tensor = self.module(x)
            return y
        if self.style == "scale":
            return F.interpolate(x, scale_factor=2, mode=self.mode)
        size = [2 * x.size(axis) for axis in range(2, 2 + self.dim)]
        return F.interpolate(x, size=size, mode=self.mode)


class PixelShuffle(Block):
    """A convolution to four times the channels, then a pixel shuffle."""

    share = 2.0
    keeps_size = False

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("pixel_shuffle")
        self.out_channels = draw.pick((4, 5, 6))
        self.unit = ConvUnit(draw, shape.channels, 4 * self.out_channels)
        self.shuffle = nn.PixelShuffle(2) if draw.chance(0.5) else None

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        return draw.dim == 2 and shape.can_grow

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit(x)
        if self.shuffle is None:
            return F.pixel_shuffle(x, 2)
        y: Tensor = self.shuffle(x)
        return y


class OtherNorm(Block):
    """A group norm or an instance norm, whose statistics mix channels or belong to the sample."""

    share = 1.5

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        self.out_channels = shape.channels
        if draw.chance(0.5):
            draw.use("groupnorm")
            groups = draw.pick((1, *shape.groups))
            self.norm: nn.Module = nn.GroupNorm(groups, shape.channels)
        else:
            draw.use("instancenorm")
            self.norm = nd("InstanceNorm", draw.dim)(
                shape.channels, affine=draw.chance(0.7), track_running_stats=draw.chance(0.3)
            )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        return y


class ChannelsLast(Block, abc.ABC):
    """Base of the blocks that work on (N, *size, C) between two transpositions."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        self.out_channels = shape.channels
        self.dim = draw.dim
        self.style = draw.pick(("permute", "movedim", "transpose"))
        self.note = self.style

    @abc.abstractmethod
    def inner(self, x: Tensor) -> Tensor:
        """Do the block's work on (N, *size, C)."""

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "permute":
            y = self.inner(x.permute(0, *range(2, 2 + self.dim), 1))
            return y.permute(0, 1 + self.dim, *range(1, 1 + self.dim)).contiguous()
        if self.style == "movedim":
            return self.inner(x.movedim(1, -1)).movedim(-1, 1)
        return self.inner(x.transpose(1, -1)).transpose(1, -1)


class ChannelLayerNorm(ChannelsLast):
    """A layer norm over the channels, as a module or as a function with parameters of its own."""

    share = 1.5

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.norm = nn.LayerNorm(shape.channels, eps=1e-6) if draw.chance(0.5) else None
        if self.norm is not None:
            draw.use("layernorm_module")
            return
        draw.use("layernorm_function")
        self.scale = nn.Parameter(draw.uniform(shape.channels, low=0.4, high=1.6))
        self.shift = nn.Parameter(draw.normal(shape.channels, std=0.4))
        self.literal = draw.chance(0.5)

    def inner(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            y: Tensor = self.norm(x)
            return y
        # Layer norm takes a shape as well as a list; ConvNeXt writes x.shape[-1:].
        axes: Any = (self.out_channels,) if self.literal else x.shape[-1:]
        return F.layer_norm(x, axes, self.scale, self.shift, 1e-6)


class ChannelsLastLinear(ChannelsLast):
    """One linear layer on the channels, or two with an activation between them."""

    share = 1.5

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        draw.use("nhwc_linear")
        self.out_channels = draw.channels()
        hidden = draw.channels()
        if draw.chance(0.5):
            self.mlp: nn.Module = nn.Linear(shape.channels, self.out_channels)
        else:
            self.mlp = nn.Sequential(
                nn.Linear(shape.channels, hidden, bias=draw.chance(0.7)),
                draw.pick((nn.GELU, nn.ReLU, nn.Softplus))(),
                nn.Linear(hidden, self.out_channels),
            )

    def inner(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(x)
        return y


class RawLinear(ChannelsLast):
    """A linear layer whose weight is a parameter of the block."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        draw.use("raw_linear_weight")
        self.out_channels = draw.channels()
        std = 1 / math.sqrt(shape.channels)
        self.weight_matrix = nn.Parameter(draw.normal(self.out_channels, shape.channels, std=std))
        self.shift = nn.Parameter(draw.normal(self.out_channels)) if draw.chance(0.5) else None
        self.product = draw.chance(0.3)

    def inner(self, x: Tensor) -> Tensor:
        if not self.product:
            return F.linear(x, self.weight_matrix, self.shift)
        y = x @ self.weight_matrix.t()
        return y if self.shift is None else y + self.shift
