"""Accuracy on held-out data: in onnxruntime, where it counts, and in torch beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fxprune.modes import in_mode
from fxprune.runtime import OnnxModel
from fxprune.training.batches import Samples
from fxprune.training.loss import heads

__all__ = ["Accuracy", "measure_accuracy"]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How many test samples were classified right.

    Attributes
    ----------
    right : int
        By the ONNX file in onnxruntime.
    torch_right : int
        By the torch model.
    differing : int
        Samples that the two put into different classes.
    total : int
        Samples there are.
    """

    right: int
    torch_right: int
    differing: int
    total: int

    @property
    def share(self) -> float:
        """Share classified right by the ONNX file."""
        return self.right / self.total

    @property
    def torch_share(self) -> float:
        """Share classified right by the torch model."""
        return self.torch_right / self.total


def measure_accuracy(model: nn.Module, path: Path, samples: Samples, batch_size: int) -> Accuracy:
    """Classify samples with a model and with its ONNX file.

    Parameters
    ----------
    model : nn.Module
        On the CPU; each of its modules gets its mode back.
    path : Path
        Its ONNX file, with a free batch size.
    samples : Samples
    batch_size : int

    Returns
    -------
    Accuracy
    """
    runtime = OnnxModel(path, threads=torch.get_num_threads())
    right = torch_right = differing = 0
    rows = torch.split(torch.arange(len(samples)), batch_size)
    with in_mode(model, training=False), torch.no_grad():
        for images, labels in samples.batches(rows):
            exported = torch.from_numpy(runtime.run(runtime.feed(images))[0]).argmax(1)
            own = heads(model(images))[0].argmax(1)
            right += int((exported == labels).sum())
            torch_right += int((own == labels).sum())
            differing += int((exported != own).sum())
    return Accuracy(right, torch_right, differing, len(samples))
