"""The training loop that every method shares."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from accuracy_.tasks import Setup

__all__ = ["BATCH", "accuracy", "batches", "fit", "fit_stage", "make_optimizer", "steps_of"]

BATCH = 64
_EVALUATION_BATCH = 256


def make_optimizer(model: nn.Module, rate: float, decay: float = 5e-4) -> SGD:
    """Return the optimizer of every method: Nesterov's SGD with weight decay on all parameters."""
    return SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=decay)


def fit_stage(
    model: nn.Module, setup: Setup, epochs: int, what: str, stage: int = 0, **options: Any
) -> None:
    """Train on all training images of a task; every stage of a run has its own order of images."""
    data = setup.data
    fit(
        model,
        data.train_images,
        data.train_labels,
        epochs=epochs,
        rate=setup.task.rate,
        seed=1000 * stage + setup.seed,
        what=what,
        **options,
    )


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    rate: float,
    seed: int,
    what: str,
    optimizer: SGD | None = None,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train with cross-entropy over one cycle of the learning rate.

    Parameters
    ----------
    model : nn.Module
        Left in training mode.
    images, labels : Tensor
        The last, incomplete batch of every epoch is dropped.
    epochs, rate, seed
        Length, peak learning rate, order of the images.
    what : str
        Beside the progress bar.
    optimizer : SGD, optional
        A new one by default.
    before_step, after_step : callable, optional
        Called right before and right after every step of the optimizer.
    """
    optimizer = optimizer or make_optimizer(model, rate)
    steps = steps_of(len(images), epochs)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps, cycle_momentum=False)
    model.to(memory_format=torch.channels_last)
    model.train()
    taken = batches(images, labels, epochs, seed)
    for x, y in tqdm(taken, what, total=steps, leave=False, mininterval=1):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
        if before_step:
            before_step()
        optimizer.step()
        if after_step:
            after_step()
        schedule.step()


def steps_of(n_images: int, epochs: int) -> int:
    """Return the number of steps that `epochs` take."""
    return epochs * (n_images // BATCH)


def batches(
    images: Tensor, labels: Tensor, epochs: int | None, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full batches in a new order every epoch; without end when `epochs` is None."""
    generator = torch.Generator().manual_seed(seed)
    for _ in itertools.count() if epochs is None else range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(images) - BATCH + 1, BATCH):
            at = order[start : start + BATCH]
            yield images[at].to(memory_format=torch.channels_last), labels[at]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that are classified right, in evaluation mode."""
    model.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(labels), _EVALUATION_BATCH):
            at = slice(start, start + _EVALUATION_BATCH)
            right += int((model(images[at]).argmax(1) == labels[at]).sum())
    return right / len(labels)
