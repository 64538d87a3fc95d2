"""Optimizers and courses of the learning rate, by name."""

from __future__ import annotations

import math

from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from fxprune.training.settings import TrainSettings

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(network: nn.Module, settings: TrainSettings) -> optim.Optimizer:
    """Make the optimizer of a network's parameters.

    Parameters
    ----------
    network : nn.Module
    settings : TrainSettings

    Returns
    -------
    Optimizer
    """
    rate, decay = settings.rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return optim.SGD(
            network.parameters(),
            rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=decay,
        )
    kind = optim.Adam if settings.optimizer == "adam" else optim.AdamW
    return kind(network.parameters(), rate, weight_decay=decay)


def build_schedule(optimizer: optim.Optimizer, settings: TrainSettings, steps: int) -> LRScheduler:
    """Make the course of the learning rate over a run of so many steps.

    Parameters
    ----------
    optimizer : Optimizer
    settings : TrainSettings
    steps : int

    Returns
    -------
    LRScheduler
        To be stepped once per optimizer step.
    """
    if settings.schedule == "one-cycle":
        return OneCycleLR(optimizer, settings.rate, total_steps=steps, cycle_momentum=False)
    warm_up = max(1, round(settings.warm_up * steps))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

    return LambdaLR(optimizer, factor)
