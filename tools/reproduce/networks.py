"""The networks of the recipes and the accuracy bench, each at any width.

``resnet20`` and ``resnet56`` are He et al.'s for 32x32 images (section 4.2: 6n+2 layers, 16, 32
and 64 channels). ``resnet18`` and ``resnet34`` are torchvision's, with ``stem="small"`` for 32x32
images: a 3x3 first convolution of stride 1 and no max-pooling. ``mobilenet_v2`` is torchvision's
with strides that suit 32x32. ``width`` multiplies the channels of *every* layer and rounds to whole
channels, not to multiples of 8, so that `narrowed` can meet a share of the MACs closely.

References
----------
.. [1] He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
.. [2] Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import MobileNetV2
from torchvision.models.resnet import BasicBlock
from torchvision.ops.misc import Conv2dNormActivation

from fxprune.errors import ConfigError

__all__ = [
    "ResidualNet",
    "Stem",
    "count_macs",
    "mobilenet_v2",
    "narrowed",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet56",
    "width_for",
]

Stem = Literal["small", "imagenet"]
Shortcut = Literal["A", "B"]

_MOBILE_STAGES = (  # expansion, channels, blocks
    (1, 16, 1),
    (6, 24, 2),
    (6, 32, 3),
    (6, 64, 4),
    (6, 96, 3),
    (6, 160, 3),
    (6, 320, 1),
)
_MOBILE_STRIDES = {"imagenet": (2, 1, 2, 2, 2, 1, 2, 1), "small": (1, 1, 2, 2, 2, 1, 2, 1)}
_MOBILE_LAST = 1280
_RESOLUTION = 1e-4  # of the width multiplier: less than a channel of any layer here


class PadShortcut(nn.Module):
    """He et al.'s option A: every second pixel, and zeros for the channels that are new."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new = after - before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class ResidualNet(nn.Module):
    """A residual network of basic blocks; its parameters are named as torchvision names them.

    Parameters
    ----------
    blocks, channels : sequence of int
        Per stage; every stage but the first halves the resolution.
    num_classes : int
    stem : {"small", "imagenet"}
        A 3x3 convolution of stride 1, or a 7x7 of stride 2 and max-pooling.
    shortcut : {"B", "A"}
        Where the shape changes: a 1x1 convolution with its norm, or `PadShortcut`.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: Sequence[int],
        num_classes: int,
        stem: Stem = "small",
        shortcut: Shortcut = "B",
    ) -> None:
        super().__init__()
        if stem not in ("small", "imagenet"):
            raise ConfigError("The stem is 'small' or 'imagenet'.", seen=repr(stem))
        if shortcut not in ("A", "B"):
            raise ConfigError("The shortcut is 'A' or 'B'.", seen=repr(shortcut))
        small = stem == "small"
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(3, channels[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        before = channels[0]
        self.stages = len(blocks)
        for number, (count, after) in enumerate(zip(blocks, channels, strict=True), 1):
            stage = _stage(before, after, count, 1 if number == 1 else 2, shortcut)
            self.add_module(f"layer{number}", stage)
            before = after
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        scores: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return scores


def _stage(before: int, after: int, count: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    change: nn.Module | None = None
    if stride != 1 or before != after:
        change = (
            PadShortcut(before, after, stride)
            if shortcut == "A"
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )
    first = BasicBlock(before, after, stride, change)
    return nn.Sequential(first, *(BasicBlock(after, after) for _ in range(count - 1)))


def _scaled(channels: float, width: float) -> int:
    return max(1, round(channels * width))


def _residual(
    blocks: Sequence[int], channels: Sequence[int], classes: int, width: float, **options: Any
) -> ResidualNet:
    return ResidualNet(blocks, [_scaled(c, width) for c in channels], classes, **options)


def resnet20(num_classes: int = 10, width: float = 1.0, shortcut: Shortcut = "B") -> ResidualNet:
    """Return He et al.'s 20-layer network for 32x32 images: 41 million MACs."""
    return _residual((3, 3, 3), (16, 32, 64), num_classes, width, shortcut=shortcut)


def resnet56(num_classes: int = 10, width: float = 1.0, shortcut: Shortcut = "B") -> ResidualNet:
    """Return He et al.'s 56-layer network for 32x32 images: 126 million MACs."""
    return _residual((9, 9, 9), (16, 32, 64), num_classes, width, shortcut=shortcut)


def resnet18(num_classes: int = 10, width: float = 1.0, stem: Stem = "small") -> ResidualNet:
    """Return torchvision's resnet18, by default with the stem for 32x32 images."""
    return _residual((2, 2, 2, 2), (64, 128, 256, 512), num_classes, width, stem=stem)


def resnet34(num_classes: int = 10, width: float = 1.0, stem: Stem = "small") -> ResidualNet:
    """Return torchvision's resnet34, by default with the stem for 32x32 images."""
    return _residual((3, 4, 6, 3), (64, 128, 256, 512), num_classes, width, stem=stem)


def mobilenet_v2(num_classes: int = 10, width: float = 1.0, stem: Stem = "small") -> MobileNetV2:
    """Return torchvision's MobileNetV2.

    Unlike torchvision's ``width_mult``, `width` narrows the last convolution (1280 channels) too:
    a pruner may, so a fair narrow network must.

    Parameters
    ----------
    num_classes : int
    width : float
    stem : {"small", "imagenet"}
        With ``"small"`` the first convolution has stride 1: 2x2 positions are left of 32x32, not 1.
    """
    if stem not in _MOBILE_STRIDES:
        raise ConfigError("The stem is 'small' or 'imagenet'.", seen=repr(stem))
    first, *strides = _MOBILE_STRIDES[stem]
    settings = [[*stage, stride] for stage, stride in zip(_MOBILE_STAGES, strides, strict=True)]
    net = MobileNetV2(
        num_classes, width_mult=width, inverted_residual_setting=settings, round_nearest=1
    )
    entry = net.features[0][0]
    entry.stride = (first, first)
    last = _scaled(_MOBILE_LAST, width)
    if last != net.last_channel:
        before = net.features[-1][0].in_channels
        net.last_channel = last
        net.features[-1] = Conv2dNormActivation(
            before, last, kernel_size=1, activation_layer=nn.ReLU6
        )
        nn.init.kaiming_normal_(net.features[-1][0].weight, mode="fan_out")
        net.classifier[1] = nn.Linear(last, num_classes)
        nn.init.normal_(net.classifier[1].weight, 0, 0.01)
        nn.init.zeros_(net.classifier[1].bias)
    return net


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Return the multiply-accumulates of one forward pass, counted by torch in evaluation mode."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(example)
    finally:
        for module, mode in training.items():
            module.training = mode
    return int(counter.get_total_flops()) // 2


def narrowed(
    builder: Callable[[float], nn.Module], share_of_macs: float, example: Tensor
) -> nn.Module:
    """Return the uniformly narrowed network whose MACs are nearest to a share of the full one's.

    Parameters
    ----------
    builder : callable
        Takes the width multiplier, returns a network with new weights.
    share_of_macs : float in (0, 1]
        Of ``builder(1.0)``.
    example : Tensor
        An input; its values do not matter.

    Raises
    ------
    ConfigError
        When the share is out of range.
    """
    return builder(width_for(builder, share_of_macs, example))


def width_for(
    builder: Callable[[float], nn.Module], share_of_macs: float, example: Tensor
) -> float:
    """Return the width multiplier of `narrowed`; see there.

    Widths are whole channels, so MACs grow with the multiplier in steps: bisection finds the step
    that crosses the target, and the nearer of its two sides is taken.
    """
    if not 0 < share_of_macs <= 1:
        raise ConfigError("The share of MACs must be in (0, 1].", seen=repr(share_of_macs))

    def macs(width: float) -> int:
        with torch.random.fork_rng():  # the caller's next weights must not depend on the search
            return count_macs(builder(width), example)

    target = share_of_macs * macs(1.0)
    low, high = 0.0, 1.0
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        low, high = (middle, high) if macs(middle) < target else (low, middle)
    return min((high, low), key=lambda width: abs(macs(width) - target))
