"""The task: classification, for networks with one head or with auxiliary heads in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fxprune.errors import ConfigError

__all__ = ["heads", "task_loss"]

AUXILIARY_WEIGHT = 0.3
"""Of every auxiliary head's loss.

References
----------
.. [1] Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 5.
"""


def heads(outputs: Any) -> list[Tensor]:
    """Return the class scores among a network's outputs, those that count first.

    Parameters
    ----------
    outputs : Tensor, sequence or mapping
        Tensors of shape (n, classes).

    Returns
    -------
    list of Tensor

    Raises
    ------
    ConfigError
        If that is not what they are.
    """
    values = [outputs]
    if isinstance(outputs, Mapping):
        values = list(outputs.values())
    elif isinstance(outputs, (tuple, list)):
        values = list(outputs)
    found = [value for value in values if value is not None]
    if not found or not all(isinstance(v, Tensor) and v.dim() == 2 for v in found):
        shapes = [tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in found]
        raise ConfigError(
            "The runtime trains classifiers: networks that return scores of shape (n, classes).",
            seen=f"{shapes}",
            hint="use the controller in a loop of your own; see fxprune.controllers",
        )
    return found


def task_loss(outputs: Any, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return the loss, and how many samples are classified right.

    Parameters
    ----------
    outputs : Tensor, sequence or mapping
        As for `heads`.
    labels : int64 Tensor, shape (n,)
    smoothing : float
        Share of a label that goes to all classes alike.

    Returns
    -------
    tuple of (Tensor, Tensor), no axes
        Mean cross-entropy, in float32, with those of auxiliary heads added; and a count without
        gradient.
    """
    first, *others = heads(outputs)
    loss = F.cross_entropy(first.float(), labels, label_smoothing=smoothing)
    for scores in others:
        added = F.cross_entropy(scores.float(), labels, label_smoothing=smoothing)
        loss = loss + AUXILIARY_WEIGHT * added
    return loss, (first.detach().argmax(1) == labels).sum()
