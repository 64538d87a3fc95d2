"""What a controller asks of its arguments, with the likely mistake in the message."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.inputs import check_count
from fxprune.optimizer_cut import check_holds

__all__ = [
    "check_gated",
    "check_loss",
    "check_optimizer",
    "check_positive",
    "check_run",
    "check_share",
    "check_slope",
]


def check_gated(gated: Any) -> None:
    """Raise a ConfigError unless `gated` is a gated module with something to prune."""
    if not isinstance(gated, GatedModule):
        hint = "pass what fxprune.auto_gate(model) returned"
        for inside in ("module", "_orig_mod"):  # DataParallel and its kin; torch.compile
            if isinstance(getattr(gated, inside, None), GatedModule):
                hint = f"pass the gated module itself, not the wrapper around it (its .{inside})"
        raise ConfigError(
            "A controller needs a gated model.", seen=f"a {type(gated).__name__}", hint=hint
        )
    if not gated.groups:
        raise ConfigError(
            "Nothing of this model can be pruned.",
            seen=f"{len(gated.frozen)} frozen axes",
            hint="gated.frozen gives the reasons",
        )


def check_optimizer(optimizer: Any, gated: nn.Module) -> None:
    """Raise a ConfigError unless `optimizer` works on parameters of `gated`."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            "A controller needs the torch.optim.Optimizer that trains the gated model.",
            seen=f"a {type(optimizer).__name__}",
        )
    check_holds(optimizer, gated)


def check_run(gated: Any, optimizer: Any, steps: Any, seed: Any) -> None:
    """Raise a ConfigError unless these can be the model, the optimizer and the length of a run."""
    check_gated(gated)
    check_optimizer(optimizer, gated)
    check_count("steps", steps)
    check_count("seed", seed, least=0)


def check_positive(name: str, value: Any) -> None:
    """Raise a ConfigError unless `value` is a finite number above 0."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise ConfigError(
            f"The {name!r} parameter must be a number above 0. Got {value!r} instead."
        )


def check_share(name: str, value: Any) -> float:
    """Return `value` as a float if it is a number in [0, 1]; raise a ConfigError if not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ConfigError(
            f"The {name!r} parameter must be a number from 0 to 1. Got {value!r} instead."
        )
    return float(value)


def check_loss(loss: Any) -> Tensor:
    """Return `loss` if it is a scalar tensor with a gradient; raise a ConfigError if not."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        seen = type(loss).__name__
        if isinstance(loss, Tensor):
            seen = f"a tensor of shape {tuple(loss.shape)}, requires_grad={loss.requires_grad}"
        raise ConfigError(
            "The held-back loss must be one number that gradients can reach.",
            seen=seen,
            hint="return the loss tensor of gated(x), computed with gradients enabled",
        )
    return loss.reshape(())


def check_slope(slope: Tensor | None, loss: str = "held-back loss") -> Tensor:
    """Return the gradient of a loss by the gates; raise a ConfigError if there is none."""
    if slope is None:
        raise ConfigError(
            f"The {loss} does not depend on the gates.",
            hint="compute it with the gated model that the controller was given",
        )
    return slope
