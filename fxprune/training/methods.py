"""The controllers that the runtime knows by name.

A controller decides which units stay while the network trains. The runtime calls `step` after
every optimizer step and `finish` after the last; everything else is the controller's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from fxprune.budget import Selection
from fxprune.controllers import AutoTrainOnce, ComplexityAware
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.training.settings import TrainSettings

__all__ = ["METHODS", "NEED_HELD_BACK", "Builder", "Controller", "build_controller"]


class Controller(Protocol):
    """What the runtime asks of a controller."""

    @property
    def phase(self) -> str:
        """What it is doing now."""

    @property
    def expected(self) -> float:
        """Share of the resource that its masks keep now."""

    def step(self, held_back_loss: Callable[[], Tensor], /) -> Any:
        """Do what follows an optimizer step; the callable gives the loss on held-back data."""

    def finish(self) -> Selection:
        """Set the final masks."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resumed run needs, as plain values and tensors."""

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take up what `state_dict` returned."""


Builder = Callable[[GatedModule, Optimizer, int, TrainSettings], Controller]
"""Makes a controller for a run of so many optimizer steps."""


def _auto_train_once(
    gated: GatedModule, optimizer: Optimizer, steps: int, settings: TrainSettings
) -> Controller:
    return AutoTrainOnce(
        gated,
        optimizer,
        steps=steps,
        macs=settings.macs,
        params=settings.params,
        every=settings.every,
        learning_rate=settings.controller_lr,
        shrink=settings.shrink,
        seed=settings.seed,
    )


def _complexity_aware(
    gated: GatedModule, optimizer: Optimizer, steps: int, settings: TrainSettings
) -> Controller:
    return ComplexityAware(
        gated,
        optimizer,
        steps=steps,
        nu=settings.nu,
        macs=settings.macs,
        params=settings.params,
        alpha=settings.alpha,
        beta=0.5 if settings.beta is None else settings.beta,
        shrink=settings.shrink,
        seed=settings.seed,
    )


METHODS: dict[str, Builder] = {"ato": _auto_train_once, "complexity": _complexity_aware}
"""Builders by the names that settings and the command line use."""

NEED_HELD_BACK = frozenset({"ato"})
"""Methods that learn from data which the weights do not see."""


def build_controller(
    gated: GatedModule, optimizer: Optimizer, steps: int, settings: TrainSettings
) -> Controller:
    """Make the controller that the settings name.

    Parameters
    ----------
    gated : GatedModule
    optimizer : Optimizer
        Of the weights of `gated`.
    steps : int
        Optimizer steps of the whole run.
    settings : TrainSettings

    Returns
    -------
    Controller

    Raises
    ------
    ConfigError
        If there is no such method, or it refuses its settings.
    BudgetError
        If the budget is out of range or cannot be reached.
    """
    return _builder(settings.method)(gated, optimizer, steps, settings)


def _builder(method: str) -> Builder:
    if method not in METHODS:
        raise ConfigError(
            f"The 'method' argument must be one of {', '.join(METHODS)}.", seen=repr(method)
        )
    return METHODS[method]
