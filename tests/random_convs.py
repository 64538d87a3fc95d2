"""Convolutions of the random test networks, with their norms and activations."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from random_draw import Block, Draw, Shape, nd
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


class CalledActivation(Block):
    """An activation that is no module: a function (``F.relu(x)``) or a method (``x.relu()``)."""

    def __init__(self, name: str, *, method: bool) -> None:
        nn.Module.__init__(self)
        self.name = name
        self.method = method
        self.note = f"x.{name}()" if method else f"F.{name}(x)"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(x, self.name)() if self.method else getattr(F, self.name)(x)
        return y


def activation(draw: Draw, channels: int) -> nn.Module:
    """Draw an activation for a tensor nobody else holds (it may work in place)."""
    name = draw.pick((*ACTIVATIONS, "prelu_1", "prelu_c", "relu"))
    draw.use(f"act_{name}")
    if name.startswith("prelu"):
        return nn.PReLU(1 if name == "prelu_1" else channels)
    style = draw.pick(("module", "module", "function", "method"))
    if style == "method" and name in ("relu", "sigmoid", "tanh"):
        draw.use("act_method")
        if draw.chance(0.3):
            draw.use("act_inplace")
            name += "_"
        return CalledActivation(name, method=True)
    if style == "function":
        draw.use("act_function")
        return CalledActivation(name, method=False)
    draw.use("act_module")
    if name in ("relu", "silu", "hardswish") and draw.chance(0.4):
        draw.use("act_inplace")
        return ACTIVATIONS[name](inplace=True)
    return ACTIVATIONS[name]()


def batchnorm(draw: Draw, channels: int) -> nn.Module:
    """Draw a batch norm, now and then without its affine pair."""
    affine = not draw.chance(0.1)
    draw.use("batchnorm" if affine else "batchnorm_no_affine")
    norm: nn.Module = nd("BatchNorm", draw.dim)(channels, affine=affine)
    return norm


class ConvUnit(Block):
    """A convolution, maybe a norm, maybe an activation; keeps the size unless told otherwise."""

    def __init__(
        self,
        draw: Draw,
        channels: int,
        out_channels: int,
        *,
        kernel: int | tuple[int, ...] | None = None,
        stride: int = 1,
        padding: int | tuple[int, ...] | None = None,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        if kernel is None:
            kernel = draw.pick((1, 3))
        if padding is None:
            padding = tuple(k // 2 for k in kernel) if isinstance(kernel, tuple) else kernel // 2
        mode = "zeros"
        if kernel == 3 and padding == 1 and draw.chance(0.08):
            mode = draw.pick(("circular", "reflect", "replicate"))
            draw.use("conv_padding_mode")
        bias = draw.chance(0.5)
        if groups == 1 and isinstance(kernel, int) and kernel in (1, 3):
            draw.use(f"conv{kernel}x{kernel}")
        draw.use("conv_bias" if bias else "conv_no_bias")
        self.conv = nd("Conv", draw.dim)(
            channels,
            out_channels,
            kernel,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=mode,
        )
        self.norm: nn.Module | None = None
        if draw.chance(0.6):
            self.norm = batchnorm(draw, out_channels)
        else:
            draw.use("no_norm")
        self.act = activation(draw, out_channels) if act and draw.chance(0.85) else None
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self.norm is not None:
            y = self.norm(y)
        if self.act is not None:
            y = self.act(y)
        return y


class DenseConv(Block):
    """One dense convolution with any stride, padding or dilation that the size allows."""

    share = 2.0
    keeps_size = False

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        settings: list[tuple[str | None, dict[str, Any]]] = [
            (None, {}),
            (None, {}),
            ("conv_dilated", {"kernel": 3, "padding": 2, "dilation": 2}),
        ]
        if shape.can_shrink:
            settings.append(("conv_stride", {"kernel": 3, "stride": 2}))
            settings.append(("conv_stride", {"kernel": 2, "stride": 2, "padding": 0}))
            settings.append(("conv_stride", {"kernel": 1, "stride": 2}))
            settings.append(("conv_unpadded", {"kernel": 3, "padding": 0}))
        if draw.dim == 2:
            settings.append(("conv_asymmetric", {"kernel": draw.pick(((1, 3), (3, 1)))}))
        feature, kwargs = draw.pick(settings)
        if feature:
            draw.use(feature)
        self.unit = ConvUnit(draw, shape.channels, draw.channels(), **kwargs)
        self.out_channels = self.unit.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x)


class GroupedConv(Block):
    """A grouped convolution, with as many or more or fewer channels out than in."""

    share = 3.0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        groups = draw.pick(shape.groups)
        out_channels = shape.channels
        draw.use("grouped_conv")
        if draw.chance(0.5):
            out_channels = draw.channels(multiple_of=groups)
        if out_channels != shape.channels:
            draw.use("grouped_conv_multiplier")
        self.unit = ConvUnit(draw, shape.channels, out_channels, groups=groups)
        self.out_channels = out_channels

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        return bool(shape.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x)


class DepthwiseConv(Block):
    """A depthwise convolution with multiplier 1 or 2, often followed by a pointwise one."""

    share = 2.0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        multiplier = draw.pick((1, 2)) if 2 * shape.channels <= draw.max_channels else 1
        draw.use(f"depthwise_{multiplier}")
        wide = multiplier * shape.channels
        self.depthwise = ConvUnit(draw, shape.channels, wide, kernel=3, groups=shape.channels)
        self.pointwise = (
            ConvUnit(draw, wide, draw.channels(), kernel=1) if draw.chance(0.5) else None
        )
        self.out_channels = self.pointwise.out_channels if self.pointwise else wide

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x)
        if self.pointwise is not None:
            y = self.pointwise(y)
        return y


class TransposedConv(Block):
    """A transposed convolution, dense, grouped or depthwise, that doubles or keeps the size."""

    share = 2.5
    keeps_size = False

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        kinds = ["dense", "depthwise", *(["grouped"] if shape.groups else [])]
        kind = draw.pick(kinds)
        draw.use(f"transposed_{kind}")
        groups = {"dense": 1, "depthwise": shape.channels}.get(kind)
        if groups is None:
            groups = draw.pick(shape.groups)
        out_channels = shape.channels
        if kind != "depthwise" or 2 * shape.channels <= draw.max_channels:
            out_channels = draw.channels(multiple_of=groups)
        settings = [{"kernel_size": 3, "padding": 1}]
        if shape.can_grow:
            settings.append({"kernel_size": 2, "stride": 2})
            settings.append({"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1})
        self.conv = nd("ConvTranspose", draw.dim)(
            shape.channels,
            out_channels,
            groups=groups,
            bias=draw.chance(0.5),
            **draw.pick(settings),
        )
        self.norm = batchnorm(draw, out_channels) if draw.chance(0.5) else nn.Identity()
        self.act = activation(draw, out_channels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class RawConv(Block):
    """A convolution whose weight is a parameter of the block."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        nn.Module.__init__(self)
        draw.use("raw_conv_weight")
        self.out_channels = draw.channels()
        kernel = draw.pick((1, 3))
        size = (self.out_channels, shape.channels, *(kernel for _ in shape.size))
        std = 1 / math.sqrt(math.prod(size[1:]))
        self.kernel = nn.Parameter(draw.normal(*size, std=std))
        self.shift = nn.Parameter(draw.normal(self.out_channels)) if draw.chance(0.5) else None
        self.padding = kernel // 2
        self.function = f"conv{draw.dim}d"
        self.act = activation(draw, self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        conv = getattr(F, self.function)
        y: Tensor = self.act(conv(x, self.kernel, self.shift, padding=self.padding))
        return y
