"""What two runs must share so that one can go on where the other stopped."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.gated import GatedModule
from fxprune.training.batches import Samples, TensorSamples
from fxprune.training.settings import TrainSettings

__all__ = ["fingerprint"]

# These change how a run is computed and recorded, not what comes out; what is ignored shows in the
# groups.
_FREE = ("checkpoint_every", "log_every", "workers", "ignore", "device")


def fingerprint(
    settings: TrainSettings, gated: GatedModule, train: Samples, test: Samples, world: int
) -> dict[str, str]:
    """Describe a run.

    Parameters
    ----------
    settings : TrainSettings
    gated : GatedModule
        Names, shapes and dtypes count, values do not: a checkpoint holds the values.
    train, test : Samples
    world : int
        Number of processes.

    Returns
    -------
    dict of str to str
        Descriptions by the names that a message about a difference uses.
    """
    found = {
        f"settings.{field.name}": repr(getattr(settings, field.name))
        for field in dataclasses.fields(settings)
        if field.name not in _FREE
    }
    found["processes"] = str(world)
    found["training data"] = _describe(train)
    found["test data"] = _describe(test)
    found |= {f"group {group.name}": f"{group.size} units" for group in gated.groups}
    return found | _tensors(gated)


def _tensors(model: nn.Module) -> dict[str, str]:
    return {
        f"model.{name}": f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in model.state_dict().items()
    }


def _describe(samples: Samples) -> str:
    """Return how many samples there are, and a digest of them as far as that is cheap."""
    size = f"{len(samples)} samples"
    if isinstance(samples, TensorSamples):
        return f"{size}, digest {_digest(samples.images, samples.labels)}"
    dataset: Any = getattr(samples, "dataset", None)
    if hasattr(dataset, "samples"):  # files and classes, as torchvision has them
        lines = [f"{Path(file).parent.name}/{Path(file).name} {n}" for file, n in dataset.samples]
        return f"{size}, digest {_shortened(hashlib.sha256(chr(10).join(lines).encode()))}"
    if hasattr(dataset, "targets"):
        return f"{size}, digest {_digest(torch.as_tensor(dataset.targets))}"
    return size


def _digest(*tensors: Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(str((tuple(tensor.shape), tensor.dtype)).encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return _shortened(found)


def _shortened(found: hashlib._Hash) -> str:
    return found.hexdigest()[:16]
