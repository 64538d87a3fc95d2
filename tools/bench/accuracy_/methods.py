"""The methods that are compared: each turns a `Setup` into a trained network of the target's size.

All get the same epochs, batches, optimizer and peak learning rate; one-stage methods one cycle over
the whole run, two-stage methods one cycle per stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from accuracy_.tasks import Setup, networks_module
from accuracy_.training import BATCH, batches, fit, make_optimizer, steps_of

__all__ = ["METHODS"]

_HELD_SHARE = 0.05


def dense(setup: Setup) -> nn.Module:
    """Train the whole network: the reference."""
    model = setup.build(1.0)
    _fit(model, setup, setup.task.epochs, "dense")
    return model


def narrow(setup: Setup) -> nn.Module:
    """Train a network with uniformly narrowed widths from scratch."""
    model = networks_module().narrowed(setup.build, setup.task.target, setup.example)
    _fit(model, setup, setup.task.epochs, "narrow")
    trained: nn.Module = model
    return trained


def magnitude(setup: Setup) -> nn.Module:
    """Train densely for half of the epochs, cut by magnitude, fine-tune for the other half."""
    first = setup.task.epochs // 2
    model = setup.build(1.0)
    _fit(model, setup, first, "magnitude, dense")
    gated = fxprune.auto_gate(model, setup.example)
    fxprune.select(gated, macs=setup.task.target, importance="magnitude")
    compact = gated.compact()
    _fit(compact, setup, setup.task.epochs - first, "magnitude, fine-tuning", stage=1)
    return compact


def ato(setup: Setup, *, held_share: float = _HELD_SHARE, **overrides: Any) -> nn.Module:
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

    data, epochs = setup.data, setup.task.epochs
    held, rest = _split(len(data.train_images), held_share, setup.seed)
    images, labels = data.train_images[rest], data.train_labels[rest]
    gated = fxprune.auto_gate(setup.build(1.0), setup.example)
    optimizer = make_optimizer(gated, setup.task.rate)
    controller = AutoTrainOnce(
        gated,
        optimizer,
        steps=steps_of(len(images), epochs),
        **{"macs": setup.task.target, "seed": setup.seed} | overrides,
    )
    held_back = batches(data.train_images[held], data.train_labels[held], 10**9, setup.seed)

    def held_loss() -> Tensor:
        x, y = next(held_back)
        return F.cross_entropy(gated(x), y)

    fit(
        gated,
        images,
        labels,
        epochs=epochs,
        rate=setup.task.rate,
        seed=setup.seed,
        what="ato",
        optimizer=optimizer,
        after_step=lambda: controller.step(held_loss),
    )
    controller.finish()
    return gated.compact()


def _fit(model: nn.Module, setup: Setup, epochs: int, what: str, stage: int = 0) -> None:
    data = setup.data
    fit(
        model,
        data.train_images,
        data.train_labels,
        epochs=epochs,
        rate=setup.task.rate,
        seed=1000 * stage + setup.seed,
        what=what,
    )


def _split(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of images to hold back, at least one batch, and of the others."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    held = max(BATCH, round(share * n))
    return order[:held], order[held:]


METHODS: dict[str, Callable[..., nn.Module]] = {
    "dense": dense,
    "narrow": narrow,
    "magnitude": magnitude,
    "ato": ato,
}
