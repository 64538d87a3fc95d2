"""Leave a model's running statistics as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["unchanged_buffers"]


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what forwards inside the block do to buffers, such as BatchNorm's running statistics.

    Statistics under random gates belong to no model that is ever used.
    """
    kept = [
        (buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in kept:
                buffer.copy_(before)
