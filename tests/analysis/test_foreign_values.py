"""Code that is not torch's own is run on random values: it must compute the same when cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune import auto_gate


class Leaf(nn.Module):
    """A small module that decides by its mode, which tracing keeps whole."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "noise":
            return x + torch.rand(x.shape[0], 1, 1, 1) if self.training else x
        if self.kind == "in place":
            return x.mul_(2) if self.training else x.add_(1)
        if self.kind == "last":  # fits whatever mask keeps the last channel
            y = x.clone()
            y[:, -1] = 0
            return y if self.training else x
        if self.kind == "width":
            return x / x.shape[1] if self.training else x
        return x.flip(1) if self.training else x


@pytest.mark.parametrize(
    ("kind", "free"),
    [("noise", True), ("in place", True), ("last", False), ("width", False), ("flip", False)],
)
def test_channels_stay_free_where_values_are_the_same(kind: str, free: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Leaf(kind), nn.Conv2d(8, 4, 1))
    gated = auto_gate(model, torch.rand(2, 3, 5, 5))
    assert bool(gated.groups) is free
