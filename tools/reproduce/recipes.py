"""The recipes: what the Auto-Train-Once paper trains, and where every number is from.

References
----------
.. [1] Wu et al., "Auto-Train-Once: Controller Network Guided Automatic Network Pruning from
   Scratch", CVPR 2024, arXiv:2403.14729.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import networks
import torchvision
from torch import nn

from fxprune.errors import ConfigError
from fxprune.training import TrainSettings

__all__ = ["RECIPES", "SOURCES", "Cited", "Recipe", "find_recipe"]

SOURCES = {
    "a": "the authors' published code: github.com/xidongwu/AutoTrainOnce at f0ebc5b, the commands "
    "in its README.md and what main.py and train.py make of them (ImageNet only)",
    "r": "the paper as table 1 of 'Automatic Complementary Separation Pruning' reports it",
    "m": "the paper as we remember it, not checked against its text",
    "h": "He et al., CVPR 2016, section 4.2 (ResNet on CIFAR-10)",
    "s": "Sandler et al., CVPR 2018, section 6.1 (MobileNetV2)",
    "l": "github.com/d-li14/mobilenetv2.pytorch, README.md; main.py of the authors' code names it",
    "o": "our choice",
}
"""Where a number can be from, by the letter that stands behind it."""

_WARM_UP_EPOCHS = 5  # source a


@dataclass(frozen=True, slots=True)
class Cited:
    """A setting, and the key of `SOURCES` that tells where it is from."""

    value: Any
    source: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """One network on one data set.

    Attributes
    ----------
    name : str
    data : {"cifar10", "cifar100", "imagenet"}
    build : callable
        From a number of classes to the network with new weights.
    cited : mapping of str to Cited
        Fields of `fxprune.training.TrainSettings`.
    jitter : bool
        Whether the colours of training images change at random (source a).
    """

    name: str
    data: Literal["cifar10", "cifar100", "imagenet"]
    build: Callable[[int], nn.Module]
    cited: Mapping[str, Cited]
    jitter: bool = False

    def settings(self, **others: Any) -> TrainSettings:
        """Return the settings of a run; `others` are added, or take the place of the recipe's."""
        return TrainSettings(**{name: one.value for name, one in self.cited.items()} | others)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if name not in RECIPES:
        raise ConfigError(
            "There is no such recipe.", seen=name, hint=f"one of {', '.join(RECIPES)}"
        )
    return RECIPES[name]


def _mobilenet_v2(num_classes: int) -> nn.Module:
    """Return MobileNetV2 with 4x4 positions left of 32x32, not 2x2: 88 million MACs."""
    net = networks.mobilenet_v2(num_classes)
    net.features[2].conv[1][0].stride = (1, 1)  # depthwise, of the first block of 24 channels
    model: nn.Module = net
    return model


_CONTROLLER = {
    "every": Cited(20, "a"),
    "controller_lr": Cited(1e-3, "a"),
    "held_back": Cited(0.05, "a"),
}

_CIFAR = {
    **_CONTROLLER,
    "epochs": Cited(300, "m"),
    "batch_size": Cited(128, "h"),
    "optimizer": Cited("sgd", "h"),
    "momentum": Cited(0.9, "h"),
    "nesterov": Cited(False, "o"),
    "schedule": Cited("cosine", "o"),
    "warm_up": Cited(_WARM_UP_EPOCHS / 300, "o"),
    "label_smoothing": Cited(0.0, "o"),
}
_CIFAR_RESNET = {**_CIFAR, "lr": Cited(0.1, "h"), "weight_decay": Cited(1e-4, "h")}
_CIFAR_MOBILENET = {**_CIFAR, "lr": Cited(0.05, "o"), "weight_decay": Cited(4e-5, "s")}

_IMAGENET = {
    **_CONTROLLER,
    "schedule": Cited("cosine", "a"),
    "label_smoothing": Cited(0.1, "a"),
}
_IMAGENET_RESNET = {
    **_IMAGENET,
    "epochs": Cited(245, "a"),
    "optimizer": Cited("adamw", "a"),
    "lr": Cited(1e-3, "a"),
    "weight_decay": Cited(5e-2, "a"),
    "warm_up": Cited(_WARM_UP_EPOCHS / 245, "a"),
}
_IMAGENET_MOBILENET = {
    **_IMAGENET,
    "epochs": Cited(300, "m"),
    "batch_size": Cited(256, "l"),
    "optimizer": Cited("sgd", "a"),
    "momentum": Cited(0.9, "a"),
    "nesterov": Cited(False, "a"),
    "lr": Cited(0.05, "l"),
    "weight_decay": Cited(4e-5, "l"),
    "warm_up": Cited(_WARM_UP_EPOCHS / 300, "a"),
}

# The commands ask for 0.193 and 0.54 of what the authors' gates can reach: inside the blocks.
_RESNET50_MACS = Cited(0.288, "a")  # 71.2 % of the whole gone, says their README.md
_RESNET34_MACS = Cited(0.557, "a")  # 1 - (1 - 0.54) * 0.962, the share of the blocks' convolutions


def _cifar(network: str, macs10: Cited, macs100: Cited) -> tuple[Recipe, Recipe]:
    """Return a network's recipes for both CIFARs, which differ in their budget only."""
    builders: dict[str, Callable[[int], nn.Module]] = {
        "resnet18": networks.resnet18,
        "resnet34": networks.resnet34,
        "resnet56": partial(networks.resnet56, shortcut="A"),
        "mobilenet_v2": _mobilenet_v2,
    }
    settings = _CIFAR_MOBILENET if network == "mobilenet_v2" else _CIFAR_RESNET
    build = builders[network]
    return (
        Recipe(f"cifar10-{network}", "cifar10", build, {"macs": macs10, **settings}),
        Recipe(f"cifar100-{network}", "cifar100", build, {"macs": macs100, **settings}),
    )


def _imagenet(network: str, macs: Cited, settings: Mapping[str, Cited], jitter: bool) -> Recipe:
    def build(num_classes: int) -> nn.Module:
        model: nn.Module = torchvision.models.get_model(network, num_classes=num_classes)
        return model

    return Recipe(f"imagenet-{network}", "imagenet", build, {"macs": macs, **settings}, jitter)


_HALF = Cited(0.5, "o")
_ALL = (
    *_cifar("resnet18", Cited(0.2, "m"), _HALF),
    *_cifar("resnet34", _HALF, _HALF),
    *_cifar("resnet56", Cited(0.45, "m"), _HALF),
    *_cifar("mobilenet_v2", Cited(0.543, "r"), _HALF),
    _imagenet(
        "resnet34", _RESNET34_MACS, {**_IMAGENET_RESNET, "batch_size": Cited(512, "a")}, True
    ),
    _imagenet(
        "resnet50", _RESNET50_MACS, {**_IMAGENET_RESNET, "batch_size": Cited(1024, "a")}, True
    ),
    _imagenet("mobilenet_v2", Cited(0.7, "m"), _IMAGENET_MOBILENET, False),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in sorted(_ALL, key=lambda r: r.data)}
"""All recipes by name."""
