"""Branches: the same are found whatever the size of the example."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from branch_checks import branches, check_all_masks, gate, keep
from branch_nets import Counted, conv
from gate_checks import assert_close, run
from small_nets import image
from torch import Tensor, nn


class Context(nn.Module):
    """A residual branch beside one that sees the whole map, or sequence, at once."""

    def __init__(self, axes: tuple[int, ...], layer: type[nn.Module], stem: nn.Module) -> None:
        super().__init__()
        kernel = () if layer is nn.Linear else (1,)
        self.axes, self.stem = axes, stem
        self.deep, self.deeper = layer(4, 4, *kernel), layer(4, 4, *kernel)
        self.context, self.head = layer(4, 4, *kernel), layer(4, 5, *kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        deep = self.deeper(F.relu(self.deep(x)))
        return self.head(F.relu(deep + self.context(x.mean(self.axes, keepdim=True))))


def halvings(count: int) -> nn.Module:
    widths = [3] + [4] * count
    return nn.Sequential(*(nn.Conv2d(a, 4, 3, 2, 1) for a in widths[:count]))


CONTEXTS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "map of one pixel": (Context((2, 3), nn.Conv2d, conv(3)), (2, 3, 1, 1), (2, 3, 7, 7)),
    "map of six": (Context((2, 3), nn.Conv2d, conv(3)), (2, 3, 6, 6), (2, 3, 7, 7)),
    "halved to one": (Context((2, 3), nn.Conv2d, halvings(6)), (2, 3, 32, 32), (2, 3, 256, 256)),
    "patches": (
        Context((2, 3), nn.Conv2d, nn.Conv2d(3, 4, 7, 7)),
        (2, 3, 7, 7),
        (2, 3, 21, 21),
    ),
    "channels last": (Context((1, 2), nn.Linear, nn.Linear(3, 4)), (2, 1, 1, 3), (2, 6, 6, 3)),
    "one frame": (Context((2,), nn.Conv1d, nn.Conv1d(3, 4, 1)), (2, 3, 1), (2, 3, 7)),
    "one token": (Context((1,), nn.Linear, nn.Linear(3, 4)), (2, 1, 3), (2, 7, 3)),
    "one token id": (Context((1,), nn.Linear, nn.Embedding(9, 4)), (2, 1), (2, 7)),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_broadcasts_with_larger_inputs_does_not_stand_in_for_a_map(name: str) -> None:
    """A map of one pixel looks like the mean of any."""
    net, small, large = CONTEXTS[name]
    whole = isinstance(net.stem, nn.Embedding)
    one, other = (torch.ones(s).long() if whole else torch.rand(s).double() for s in (small, large))
    gated = gate(copy.deepcopy(net).double(), one)
    (branch,) = branches(gated)
    assert [m.fqn for m in branch.members] == ["context.weight", "context.bias"]
    gated.set_keep(keep(gated, False))
    assert_close(run(gated.compact(), other), run(gated, other), "another size")


def test_maps_of_one_pixel_have_branches_where_larger_ones_have() -> None:
    found = [
        [group.members[0].fqn for group in branches(gate(Counted(), image(size=size)))]
        for size in (1, 6)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_a_model_of_one_size_has_its_branches() -> None:
    """Nothing can be learnt at other sizes, and nothing else will come."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.deep, self.last = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x.flatten(1).unsqueeze(1))
            return self.last(x + self.deep(x))

    x = image(size=2)
    assert len(branches(check_all_masks(Fixed().double(), x))) == 1
