"""The methods that are compared: each turns a `Setup` into a trained network of the target's size.

All get the same epochs, batches, optimizer and peak learning rate; one-stage methods one cycle over
the whole run, two-stage methods one cycle per stage. A method returns its network and what else it
was set to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from accuracy_.group_norm import torch_pruning
from accuracy_.tasks import Setup, networks_module
from accuracy_.training import BATCH, batches, fit, fit_stage, make_optimizer, steps_of

__all__ = ["METHODS", "Method"]

Method = Callable[..., tuple[nn.Module, dict[str, Any]]]


def dense(setup: Setup) -> tuple[nn.Module, dict[str, Any]]:
    """Train the whole network: the reference."""
    model = setup.build(1.0)
    fit_stage(model, setup, setup.task.epochs, "dense")
    return model, {}


def narrow(setup: Setup) -> tuple[nn.Module, dict[str, Any]]:
    """Train a network with uniformly narrowed widths from scratch."""
    width = networks_module().width_for(setup.build, setup.task.target, setup.example)
    model = setup.build(width)
    fit_stage(model, setup, setup.task.epochs, "narrow")
    return model, {"width": width}


def magnitude(
    setup: Setup, *, dense_share: float = 0.5, importance: str = "magnitude"
) -> tuple[nn.Module, dict[str, Any]]:
    """Train densely for half of the epochs, cut by magnitude, fine-tune for the other half."""
    first = round(dense_share * setup.task.epochs)
    model = setup.build(1.0)
    fit_stage(model, setup, first, "magnitude, dense")
    gated = fxprune.auto_gate(model, setup.example)
    fxprune.select(gated, macs=setup.task.target, importance=importance)
    compact = gated.compact()
    fit_stage(compact, setup, setup.task.epochs - first, "magnitude, fine-tuning", stage=1)
    return compact, {"dense_share": dense_share, "importance": importance}


def ato(
    setup: Setup, *, held_share: float = 0.05, **overrides: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Train once with Auto-Train-Once; nothing is fine-tuned.

    A share of the training images is held back for the controller: weights are trained on the rest,
    so this method sees fewer images per epoch than the others.

    Parameters
    ----------
    setup : Setup
    held_share : float
    **overrides
        Further arguments of `fxprune.controllers.AutoTrainOnce`.
    """
    from fxprune.controllers import AutoTrainOnce

    data, task = setup.data, setup.task
    held, rest = _split(len(data.train_images), held_share, setup.seed)
    gated = fxprune.auto_gate(setup.build(1.0), setup.example)
    optimizer = make_optimizer(gated, task.rate)
    steps = steps_of(len(rest), task.epochs)
    controller = AutoTrainOnce(
        gated, optimizer, steps=steps, **{"macs": task.target, "seed": setup.seed} | overrides
    )
    # Drawn from for as long as the run lasts: there is no number of epochs on held-back images.
    held_back = batches(data.train_images[held], data.train_labels[held], None, setup.seed)

    def held_loss() -> Tensor:
        x, y = next(held_back)
        return F.cross_entropy(gated(x), y)

    fit(
        gated,
        data.train_images[rest],
        data.train_labels[rest],
        epochs=task.epochs,
        rate=task.rate,
        seed=setup.seed,
        what="ato",
        optimizer=optimizer,
        after_step=lambda: controller.step(held_loss),
    )
    controller.finish()
    return gated.compact(), {"held_share": held_share, "every": controller.every} | overrides


def complexity(setup: Setup, **overrides: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Train once with complexity-aware training, units and layers; nothing is fine-tuned.

    Parameters
    ----------
    setup : Setup
    **overrides
        Further arguments of `fxprune.controllers.ComplexityAware`; without layers for a beta of 0.
    """
    from fxprune.controllers import ComplexityAware

    data, task = setup.data, setup.task
    branches = overrides.get("beta", 0.5) > 0
    gated = fxprune.auto_gate(setup.build(1.0), setup.example, branches=branches)
    optimizer = make_optimizer(gated, task.rate)
    controller = ComplexityAware(
        gated,
        optimizer,
        steps=steps_of(len(data.train_images), task.epochs),
        **{"macs": task.target, "seed": setup.seed, "shrink": True} | overrides,
    )
    fit_stage(
        gated,
        setup,
        task.epochs,
        "complexity",
        optimizer=optimizer,
        after_step=controller.step,
    )
    controller.finish()
    return gated.compact(), {"settled": controller.settled, "nu": controller.nu} | overrides


def _split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of images to hold back, at least one batch, and of the others."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held = max(BATCH, round(share * n))
    return order[:held], order[held:]


METHODS: dict[str, Method] = {
    "dense": dense,
    "narrow": narrow,
    "magnitude": magnitude,
    "torch-pruning": torch_pruning,
    "ato": ato,
    "complexity": complexity,
}
