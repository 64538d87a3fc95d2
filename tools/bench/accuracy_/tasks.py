"""What is trained: data, network, target and length of a run."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
import torchvision
from torch import Tensor, nn

from fxprune.errors import ConfigError

if TYPE_CHECKING:
    from fxprune.data import ImageData

__all__ = ["TASKS", "Setup", "Task", "find_task", "networks_module", "set_up"]

_SIZE = 32
_GLYPHS_PER_CLASS = 50
_GLYPHS_TEST_PER_CLASS = 40


@dataclass(frozen=True, slots=True)
class Task:
    """One column of the comparison.

    Attributes
    ----------
    data, net : str
        Names in this module's tables.
    target : float
        Share of the whole network's MACs to keep.
    epochs : int
        Of the whole run, the same for every method.
    rate : float
        Peak learning rate of the one-cycle schedules.
    """

    data: str
    net: str
    target: float
    epochs: int
    rate: float

    @property
    def name(self) -> str:
        """The name that `find_task` takes, as ``glyphs/resnet20/0.3``."""
        return f"{self.data}/{self.net}/{self.target:g}"


TASKS = (
    *(Task("glyphs", "resnet20", target, 8, 0.2) for target in (0.5, 0.3, 0.1)),
    *(Task("glyphs", "mobilenet_v2", target, 10, 0.1) for target in (0.5, 0.3, 0.1)),
    Task("digits", "resnet18", 0.1, 10, 0.05),
)


@dataclass(frozen=True, slots=True)
class Setup:
    """A task made ready: its data, a builder of its network at any width, an example input."""

    task: Task
    data: ImageData
    build: Callable[[float], nn.Module]
    example: Tensor
    seed: int


def find_task(name: str) -> Task:
    """Return the task of a name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for task in TASKS:
        if task.name == name:
            return task
    raise ConfigError(
        f"There is no task named {name!r}.", hint=f"one of {', '.join(t.name for t in TASKS)}"
    )


def set_up(task: Task, seed: int) -> Setup:
    """Load the data of a task; the data and the split are the same for every seed."""
    data = _load(task.data)
    classes = int(data.train_labels.max()) + 1
    build = functools.partial(_build, task.net, classes)
    return Setup(task, data, build, torch.zeros(1, 3, _SIZE, _SIZE), seed)


@functools.cache
def _load(name: str) -> ImageData:
    import fxprune.data

    if name == "digits":
        return fxprune.data.digits(_SIZE)
    return fxprune.data.glyphs(_SIZE, _GLYPHS_PER_CLASS, _GLYPHS_TEST_PER_CLASS)


def _build(net: str, classes: int, width: float) -> nn.Module:
    networks = networks_module()
    model: nn.Module
    if net in ("resnet20", "resnet56"):
        model = getattr(networks, net)(classes, width)
    elif net == "mobilenet_v2":
        # Twice the time of torchvision's strides, which leave one position of 32x32: with those it
        # has hardly learnt after 12 epochs on glyphs (one seed, rate 0.1: 26 % instead of 78 %).
        model = networks.mobilenet_v2(classes, width)
    elif width == 1:
        model = torchvision.models.get_model(net, weights=None, num_classes=classes)
    else:
        model = networks.resnet18(classes, width, stem="imagenet")
    return model


def networks_module() -> ModuleType:
    """Return ``tools/reproduce/networks.py``, which is in no package, as a module."""
    if "networks" not in sys.modules:
        path = Path(__file__).parents[2] / "reproduce" / "networks.py"
        spec = importlib.util.spec_from_file_location("networks", path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"{path} cannot be loaded.")
        module = importlib.util.module_from_spec(spec)
        sys.modules["networks"] = module
        spec.loader.exec_module(module)
    return sys.modules["networks"]
