"""From ids to groups: a partition, with the members one expects on nets one can read."""

from __future__ import annotations

import pytest
import torch
from gate_checks import assert_partition
from random_nets import random_net
from small_nets import (
    AuxHead,
    Concat,
    Depthwise,
    Grouped,
    LayerNormMlp,
    Residual,
    Shuffle,
    image,
    rows,
)
from torch import Tensor, nn

from fxprune.analysis.plan import ChannelGroup, FrozenAxis, Member
from fxprune.api import auto_gate
from fxprune.gated import GatedModule


def groups(gated: GatedModule) -> dict[str, tuple[int, list[str]]]:
    """Return size and members of every group by name."""
    return {g.name: (g.size, [str(m) for m in g.members]) for g in gated.groups}


def reasons(gated: GatedModule) -> dict[str, str]:
    return {str(f.member): f.reason for f in gated.frozen}


def units(gated: GatedModule, name: str, dim: int) -> list[int]:
    """Return the unit of every position of an axis; -1 where it is always kept."""
    table = gated.plan.units[gated.plan.axes[name, dim]]
    assert table.shape[1] == 1
    return [-1 if u == gated.plan.n_units else u for u in table[:, 0].tolist()]


# -- exact members ---------------------------------------------------------------------------------------------


def test_residual() -> None:
    gated = auto_gate(Residual(), image())
    assert groups(gated) == {
        "stem": (
            8,
            [
                "stem.weight[0]",
                "inner.weight[1]",
                "outer.weight[0]",
                "norm.weight[0]",
                "norm.bias[0]",
                "head.weight[1]",
            ],
        ),
        "inner": (6, ["inner.weight[0]", "outer.weight[1]"]),
    }
    assert reasons(gated) == {
        "stem.weight[1]": "it reads an input of the model",
        "head.weight[0]": "it is an output of the model",
    }
    assert_partition(gated)


def test_concat() -> None:
    """Each branch keeps its group; the axis that reads the join belongs to both."""
    gated = auto_gate(Concat(), image())
    assert groups(gated) == {
        "left": (5, ["left.weight[0]", "join.weight[1]"]),
        "right": (7, ["right.weight[0]", "join.weight[1]", "alone.weight[1]"]),
    }
    assert units(gated, "join.weight", 1) == [*range(12)]
    assert units(gated, "alone.weight", 1) == [*range(5, 12)]
    assert_partition(gated)


def test_depthwise() -> None:
    """Every input channel makes two neighbours."""
    gated = auto_gate(Depthwise(), image())
    assert groups(gated) == {
        "expand": (6, ["expand.weight[0]", "depth.weight[0]", "project.weight[1]"])
    }
    assert units(gated, "project.weight", 1) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert units(gated, "depth.weight", 0) == units(gated, "project.weight", 1)
    assert_partition(gated)


def test_grouped() -> None:
    """The same position goes in all groups of the convolution."""
    gated = auto_gate(Grouped(), image())
    assert groups(gated) == {
        "expand": (4, ["expand.weight[0]", "grouped.weight[1]"]),
        "grouped": (6, ["grouped.weight[0]", "project.weight[1]"]),
    }
    assert units(gated, "expand.weight", 0) == [0, 1, 2, 3, 0, 1, 2, 3]
    assert units(gated, "grouped.weight", 1) == [0, 1, 2, 3]
    assert units(gated, "grouped.weight", 0) == [4, 5, 6, 7, 8, 9] * 2
    assert_partition(gated)


def test_shuffle() -> None:
    """A permutation: every channel stays free, and the reader sees them interleaved."""
    gated = auto_gate(Shuffle(), image())
    assert groups(gated) == {"make": (8, ["make.weight[0]", "read.weight[1]"])}
    assert units(gated, "make.weight", 0) == [*range(8)]
    assert units(gated, "read.weight", 1) == [0, 4, 1, 5, 2, 6, 3, 7]
    assert_partition(gated)


class TwoRows(nn.Module):
    """Channels seen as two rows of four that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.make(x).view(-1, 2, 4, 6, 6).sum(1))


def test_what_is_left_of_a_split_axis_must_be_a_rectangle() -> None:
    gated = auto_gate(TwoRows().double(), image())
    members = ["make.weight[0]", "read.weight[1]"]
    assert groups(gated) == {"make": (4, members), "make:2": (2, members[:1])}
    gated.set_keep(
        {"make": torch.tensor([True, False, False, True]), "make:2": torch.eye(2)[0] > 0}
    )
    assert gated.compact().get_submodule("make").out_channels == 2


def test_layer_norm() -> None:
    gated = auto_gate(LayerNormMlp(), rows())
    members = ["make.weight[0]", "make.bias[0]", "norm.weight[0]", "norm.bias[0]", "read.weight[1]"]
    assert groups(gated) == {"make": (10, members)}


def test_a_group_seen_in_one_mode_only() -> None:
    gated = auto_gate(AuxHead(), image())
    assert groups(gated)["aux.0"] == (5, ["aux.0.weight[0]", "aux.0.bias[0]", "aux.3.weight[1]"])
    assert groups(gated)["stem.0"][1][-2:] == ["body.weight[1]", "aux.0.weight[1]"]
    assert units(gated, "aux.3.weight", 1) == [14 + i // 36 for i in range(180)]


class Split(nn.Module):
    """One convolution whose halves go different ways: two groups on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 10, 1)
        self.one, self.two = nn.Conv2d(4, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.make(x).split([4, 6], 1)
        return self.one(a) + self.two(b)


def test_two_groups_of_one_module_have_different_names() -> None:
    gated = auto_gate(Split().double(), image())
    assert groups(gated) == {
        "make": (4, ["make.weight[0]", "make.bias[0]", "one.weight[1]"]),
        "make:2": (6, ["make.weight[0]", "make.bias[0]", "two.weight[1]"]),
    }
    assert units(gated, "make.weight", 0) == [*range(10)]
    assert_partition(gated)


class PartlyFixed(nn.Module):
    """The first channels are added to the input, the others are free."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.make(x)
        return self.read(torch.cat([y[:, :3] + x, y[:, 3:]], 1))


def test_part_of_an_axis_may_be_frozen() -> None:
    gated = auto_gate(PartlyFixed().double(), image())
    assert groups(gated) == {"make": (5, ["make.weight[0]", "read.weight[1]"])}
    assert units(gated, "make.weight", 0) == [-1, -1, -1, 0, 1, 2, 3, 4]
    (frozen,) = [f for f in gated.frozen if f.member == Member("make.weight", 0)]
    assert (frozen.count, frozen.size) == (3, 8)
    assert "fixed size" in frozen.reason
    assert str(frozen).startswith("make.weight[0] (3 of 8): ")


class Tied(nn.Module):
    """One weight under two names, one module called twice, one parameter nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.mix = nn.Linear(6, 6)
        self.out = nn.Linear(6, 9, bias=False)
        self.out.weight = self.table.weight
        self.spare = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.table(x)
        return self.out(self.mix(self.mix(y).relu()))


def test_shared_and_unused_parameters() -> None:
    gated = auto_gate(Tied(), torch.arange(5))
    assert groups(gated) == {
        "mix": (6, ["table.weight[1]", "mix.weight[0]", "mix.weight[1]", "mix.bias[0]"])
    }
    told = reasons(gated)
    assert told["spare.weight[0]"] == told["spare.bias[0]"]
    assert told["spare.bias[0]"] == "the captured graph does not use this parameter"
    assert "looks rows up by number" in told["table.weight[0]"]
    assert gated.cost().params == 9 * 6 + 6 * 6 + 6
    assert_partition(gated)


class Raw(nn.Module):
    """Parameters that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.rand(8, 3, 1, 1))
        self.scale = nn.Parameter(torch.rand(8, 1, 1))
        self.read = nn.Conv2d(8, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(nn.functional.conv2d(x, self.kernel) * self.scale)


def test_raw_parameters_give_their_own_name() -> None:
    gated = auto_gate(Raw().double(), image())
    assert groups(gated) == {"kernel": (8, ["kernel[0]", "scale[0]", "read.weight[1]"])}


# -- any net ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(500, 530))
def test_partition_of_random_nets(seed: int) -> None:
    model, x = random_net(seed)
    gated = auto_gate(model, x)
    assert_partition(gated)
    again = auto_gate(model, x)
    assert again.groups == gated.groups
    assert again.frozen == gated.frozen


@pytest.mark.parametrize("seed", range(500, 505))
def test_groups_do_not_depend_on_the_batch_size(seed: int) -> None:
    model, x = random_net(seed)
    one, three = auto_gate(model, x[:1]), auto_gate(model, torch.cat([x, x[:1]]))
    assert one.groups == three.groups
    assert one.frozen == three.frozen


# -- how it prints ---------------------------------------------------------------------------------------------


def test_text() -> None:
    member = Member("a.weight", 0)
    assert str(member) == "a.weight[0]"
    assert str(ChannelGroup("a", "channel", 4, (member,))) == "a (4 channel units, 1 axes)"
    assert str(FrozenAxis(member, "because", 4, 4)) == "a.weight[0]: because"
    assert str(FrozenAxis(member, "because", 1, 4)) == "a.weight[0] (1 of 4): because"
    assert sorted([Member("b", 0), Member("a", 1), Member("a", 0)])[0] == Member("a", 0)
