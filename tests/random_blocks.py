"""Blocks of the random test networks that branch and meet again: residuals, concats, splits."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from random_convs import ConvUnit, activation, batchnorm
from random_draw import Block, Draw, Shape, nd
from torch import Tensor, nn

MERGES = ("add", "cat", "mul", "stack_sum", "where", "maximum")


class Merge(nn.Module):
    """Turns two or three tensors into one; all kinds but "cat" want equal shapes."""

    def __init__(self, draw: Draw, kind: str, count: int) -> None:
        super().__init__()
        self.kind = kind
        self.style = draw.pick((0, 1, 2))
        self.negative_axis = -1 - draw.dim
        if kind != "add":
            draw.use({"cat": f"concat_{count}", "mul": "gating_mul"}.get(kind, kind))

    def extra_repr(self) -> str:
        return f"{self.kind}, style {self.style}"

    def forward(self, *xs: Tensor) -> Tensor:
        y: Tensor = getattr(self, f"merge_{self.kind}")(*xs)
        return y

    def merge_add(self, first: Tensor, *rest: Tensor) -> Tensor:
        if self.style == 0:
            return sum(rest, start=first)
        if self.style == 1:
            # Python's sum starts at 0, which leaves an ``add(0, x)`` in the graph.
            return cast(Tensor, sum((first, *rest)))
        for x in rest:
            first = torch.add(first, x, alpha=0.5)
        return first

    def merge_cat(self, *xs: Tensor) -> Tensor:
        if self.style == 0:
            return torch.cat(xs, 1)
        axis = 1 if self.style == 1 else self.negative_axis
        return torch.concat(xs, dim=axis)

    def merge_mul(self, first: Tensor, *rest: Tensor) -> Tensor:
        for x in rest:
            first = first * (torch.sigmoid(x), torch.tanh(x), x)[self.style]
        return first

    def merge_stack_sum(self, *xs: Tensor) -> Tensor:
        axis = (0, 1, -1)[self.style]
        return torch.stack(xs, dim=axis).sum(dim=axis)

    def merge_where(self, first: Tensor, *rest: Tensor) -> Tensor:
        # All three are continuous where the condition flips: rounding cannot make a jump.
        for x in rest:
            if self.style == 0:
                first = torch.where(first > x, first, 0.5 * (first + x))
            elif self.style == 1:
                first = torch.where(first > 0, first + x, x - 0.3 * first)
            else:
                first = torch.where(x.lt(0), x, 0.0) + first
        return first

    def merge_maximum(self, first: Tensor, *rest: Tensor) -> Tensor:
        for x in rest:
            first = torch.maximum(first, x) if self.style else torch.max(x, first)
        return first


class Chain(Block):
    """One to three layers, one of which may be any block that keeps the size."""

    def __init__(self, draw: Draw, shape: Shape, out_channels: int, *, act: bool = True) -> None:
        nn.Module.__init__(self)
        channels = shape.channels
        layers: list[Block] = []
        if draw.chance(0.4):
            layers.append(ConvUnit(draw, channels, draw.channels()))
            channels = layers[-1].out_channels
        if draw.depth < 3 and draw.chance(0.3):
            layers.append(draw.block(Shape(channels, shape.size), nested=True))
            channels = layers[-1].out_channels
        layers.append(ConvUnit(draw, channels, out_channels, act=act))
        self.layers = nn.Sequential(*layers)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


class Branches(Block):
    """Two or three branches that read one tensor and meet in any `Merge`."""

    share = 4.0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        kind = draw.pick((*MERGES, "cat"))
        count = draw.pick((2, 3)) if kind in ("cat", "add", "stack_sum") else 2
        width = draw.channels()
        branches: list[nn.Module] = []
        widths: list[int] = []
        if kind == "cat" and shape.channels <= draw.max_channels - 8 and draw.chance(0.5):
            draw.use("concat_identity")
            branches.append(nn.Identity())
            widths.append(shape.channels)
        while len(branches) < count:
            if kind == "cat":
                width = draw.channels((draw.max_channels - sum(widths)) // (count - len(widths)))
            branches.append(Chain(draw, shape, width))
            widths.append(width)
        self.branches = nn.ModuleList(branches)
        self.merge = Merge(draw, kind, count)
        self.out_channels = sum(widths) if kind == "cat" else width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.merge(*[branch(x) for branch in self.branches])
        return y


class FanOut(Block):
    """One tensor, read by a chain, by a depthwise convolution and by a pool or the merge itself."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("fan_out_3")
        width = draw.channels()
        self.unit = ConvUnit(draw, shape.channels, width)
        self.chain = Chain(draw, Shape(width, shape.size), width)
        self.depthwise = ConvUnit(draw, width, width, kernel=3, groups=width)
        self.pool = nd("MaxPool", draw.dim)(3, stride=1, padding=1) if draw.chance(0.5) else None
        self.merge = Merge(draw, draw.pick(("add", "mul", "stack_sum", "maximum")), 3)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        y = self.unit(x)
        last = y if self.pool is None else self.pool(y)
        z: Tensor = self.merge(self.chain(y), self.depthwise(y), last)
        return z


class Residual(Block):
    """An identity or projected shortcut around a chain, added in one of four ways."""

    share = 4.0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        stride = 2 if draw.depth == 1 and shape.can_shrink and draw.chance(0.25) else 1
        same = stride == 1 and draw.chance(0.6)
        width = shape.channels if same else draw.channels()
        draw.use("residual_identity" if same else "residual_projected")
        self.head = (
            ConvUnit(draw, shape.channels, draw.channels(), kernel=3, stride=stride)
            if stride == 2 or draw.chance(0.5)
            else None
        )
        inner = Shape(self.head.out_channels if self.head else shape.channels, shape.size)
        if stride == 2:
            inner = inner._replace(size=tuple((s + 1) // 2 for s in shape.size))
        # The chain ends without an activation: its output is its own, fit to be added to in place.
        self.chain = Chain(draw, inner, width, act=False)
        self.shortcut = (
            None
            if same
            else ConvUnit(draw, shape.channels, width, kernel=1, stride=stride, act=False)
        )
        self.style = draw.pick(("x + y", "y + x", "y += x", "y.add_(x)"))
        if self.style in ("y += x", "y.add_(x)"):
            draw.use("residual_inplace")
        self.act = activation(draw, width) if draw.chance(0.6) else None
        self.out_channels = width
        self.note = self.style

    def forward(self, x: Tensor) -> Tensor:
        y = self.chain(x if self.head is None else self.head(x))
        if self.shortcut is not None:
            x = self.shortcut(x)
        if self.style == "x + y":
            y = x + y
        elif self.style == "y + x":
            y = y + x
        elif self.style == "y += x":
            y += x
        else:
            y = y.add_(x)
        return y if self.act is None else self.act(y)


class ScaledResidual(Block):
    """A residual whose branch is scaled by a learned gamma of shape (C, 1, 1), as in ConvNeXt."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("layer_scale", "residual_identity")
        self.chain = Chain(draw, shape, shape.channels, act=False)
        self.gamma = nn.Parameter(draw.normal(shape.channels, *(1 for _ in shape.size)))
        self.gamma_first = draw.chance(0.5)
        self.out_channels = shape.channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.chain(x)
        return x + self.gamma * y if self.gamma_first else y * self.gamma + x


class PaddedResidual(Block):
    """A shortcut that pads channels with zeros and skips pixels (ResNet on CIFAR, option A)."""

    share = 1.5
    keeps_size = False

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("pad_shortcut")
        self.stride = 2 if shape.can_shrink else 1
        extra = draw.rng.randint(1, draw.max_channels - shape.channels)
        before = draw.pick((0, extra // 2))
        self.pad = (*(0 for _ in range(2 * draw.dim)), before, extra - before)
        self.out_channels = shape.channels + extra
        stride = self.stride
        self.unit = ConvUnit(draw, shape.channels, self.out_channels, kernel=3, stride=stride)
        steps = (slice(None, None, stride) for _ in shape.size)
        self.pixels = (slice(None), slice(None), *steps)
        self.note = f"pad {self.pad}, stride {stride}"

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        return shape.channels < draw.max_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) + F.pad(x[self.pixels], self.pad)


class Split(Block):
    """Channels cut in parts (seven spellings), each part convolved or kept, then put together."""

    share = 5.0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        self.total = shape.channels
        ways = ("chunk", "int", "sizes", "slice", "strided", "overlap", "narrow")
        self.way = draw.pick(ways)
        self.count = 3 if self.total >= 6 and draw.chance(0.4) else 2
        first = draw.rng.randint(1, self.total - self.count + 1)
        rest = self.total - first
        self.sizes = [first, rest] if self.count == 2 else [first, rest // 2, rest - rest // 2]
        self.step = draw.rng.randint(-(-self.total // 3), self.total - 1)
        self.reach = draw.rng.randint(0, first)
        draw.use(f"split_{self.way}")
        widths = [part.size(1) for part in self.parts(torch.empty(1, self.total))]
        merge = draw.pick(("cat", "cat", "add"))
        draw.use(f"split_then_{merge}")
        kept = merge == "cat" and widths[0] <= draw.max_channels - 8 and draw.chance(0.5)
        branches: list[nn.Module] = []
        out: list[int] = []
        if kept:
            draw.use("split_passthrough")
            branches.append(nn.Identity())
            out.append(widths[0])
        for width in widths[len(out) :]:
            room = (draw.max_channels - sum(out)) // (len(widths) - len(out))
            out.append(out[0] if merge == "add" and out else draw.channels(room))
            branches.append(ConvUnit(draw, width, out[-1]))
        self.branches = nn.ModuleList(branches)
        self.merge = Merge(draw, merge, len(widths))
        self.out_channels = sum(out) if merge == "cat" else out[0]
        self.note = f"{self.way}, widths {widths}"

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        return shape.channels >= 3

    def parts(self, x: Tensor) -> list[Tensor]:
        """Cut ``x`` along axis 1."""
        first, total = self.sizes[0], self.total
        if self.way == "chunk":
            chunks = x.chunk(self.count, dim=1)
            return [chunks[i] for i in range(self.count)]
        if self.way == "int":
            pieces = torch.split(x, self.step, dim=1)
            return [pieces[i] for i in range(-(-total // self.step))]
        if self.way == "sizes":
            split: Any = x.split if self.count == 2 else partial(torch.split, x)
            cut = split(self.sizes, dim=1)
            return [cut[i] for i in range(self.count)]
        if self.way == "slice":
            return [x[:, :first], x[:, first:]]
        if self.way == "strided":
            return [x[:, ::2], x[:, 1::2]]
        if self.way == "overlap":
            return [x[:, :first], x[:, first - self.reach :]]
        return [x.narrow(1, 0, first), x.narrow(1, first, total - first)]

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(x)
        y: Tensor = self.merge(*(f(part) for f, part in zip(self.branches, parts, strict=True)))
        return y


class Shared(Block):
    """One convolution or one batch norm that is called twice."""

    share = 2.0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        width = draw.channels()
        self.kind = draw.pick(("conv", "conv_two_inputs", "bn"))
        draw.use("shared_bn" if self.kind == "bn" else f"shared_{self.kind}")
        self.first = ConvUnit(draw, shape.channels, width)
        self.second = ConvUnit(draw, shape.channels, width, act=self.kind != "bn")
        self.again: nn.Module = (
            batchnorm(draw, width)
            if self.kind == "bn"
            else nd("Conv", draw.dim)(width, width, draw.pick((1, 3)), padding="same")
        )
        self.act = activation(draw, width)
        self.merge = Merge(draw, draw.pick(("add", "mul", "maximum")), 2)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor
        if self.kind == "conv":
            y = self.again(self.act(self.again(self.first(x))))
            return y + self.second(x)
        y = self.merge(self.again(self.first(x)), self.again(self.second(x)))
        y = self.act(y)
        return y
