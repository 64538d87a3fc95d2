"""Weight standardisation spelled as a batch norm of the weight: its inputs stay prunable."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close, assert_cost, random_keep, run
from small_nets import image
from torch import Tensor, nn

from fxprune import auto_gate


class Standardised(nn.Conv2d):
    """Mean 0 and variance 1 in every filter, times a gain."""

    def __init__(self, *args: int, affine: bool = True, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)
        shape = (self.out_channels, 1, 1, 1)
        self.gain = nn.Parameter(torch.rand(shape) + 0.5) if affine else None
        self.shift = nn.Parameter(torch.rand(self.out_channels)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        gain = None if self.gain is None else (self.gain * 0.3).view(-1)
        rows = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(rows, None, None, gain, self.shift, training=True, momentum=0.0, eps=1e-3)
        w = w.reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 16])
def test_standardised_weights_stay_prunable(affine: bool, groups: int) -> None:
    model = nn.Sequential(
        Standardised(3, 16, 3, affine=affine),
        nn.SiLU(),
        Standardised(16, 16, 3, groups=groups, padding=1, affine=affine),
        nn.Sigmoid(),
        Standardised(16, 8, 1, affine=affine),
        nn.Conv2d(8, 4, 1),
    ).double()
    x = image()
    gated = auto_gate(model, x)
    prunable = {str(member) for group in gated.groups for member in group.members}
    assert prunable >= {f"{layer}.weight[0]" for layer in (0, 2, 4)} | {"4.weight[1]"}
    assert_close(run(gated, x), run(model, x), "open gates")
    for seed in range(3):
        gated.set_keep(random_keep(gated, 0.5, seed))
        compact = gated.compact()
        assert_close(run(compact, x), run(gated, x), "compact")
        assert_cost(gated, compact, x)


def test_activations_are_left_alone_even_in_a_batch_of_one() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.batch_norm(self.a(x), None, None, training=True))

    model, x = Normalised().double(), image()
    gated = auto_gate(model, x[:1])
    assert_close(run(gated, x), run(model, x), "a batch of several")
