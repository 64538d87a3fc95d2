"""Models with statistics over prunable channels: gated equals compact, and nothing of the gates is left."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close, assert_equal_to_compact, keep_vector, random_keep, run
from torch import Tensor, fx, nn

from fxprune.api import auto_gate
from fxprune.passes.insert_gates import GATES

ATEN = torch.ops.aten


class Mixed(nn.Module):
    """Statistics of every kind between layers; RMS and response norms as one writes them by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Conv2d(3, 8, 1)
        self.group = nn.GroupNorm(2, 8)
        self.mid = nn.Conv2d(8, 12, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(12))
        self.read = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.group(self.make(x)).sigmoid()
        y = self.mid(y)
        response = y.norm(dim=(2, 3), keepdim=True)
        y = y + y * response / (response.mean(1, keepdim=True) + 1e-6)
        y = y * torch.rsqrt(y.pow(2).mean(1, keepdim=True) + 1e-6) * self.scale[:, None, None]
        y = y + torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1).sum(
            1, keepdim=True
        )
        return self.read(y * y.softmax(1))


@pytest.fixture(scope="module")
def mixed() -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    return auto_gate(Mixed().double(), x), x


def test_everything_in_the_mixed_model_is_prunable(mixed: tuple[Any, Tensor]) -> None:
    gated, x = mixed
    assert {(g.name, g.size) for g in gated.groups} == {("make", 4), ("make:2", 2), ("mid", 12)}
    for training in (False, True):
        gated.train(training)
        for seed, share in enumerate((0.2, 0.6)):
            gated.set_keep(random_keep(gated, share, seed))
            compact = assert_equal_to_compact(gated, x)
            assert type(compact.group) is nn.GroupNorm
            assert compact.group.num_groups == int(gated.keep["make:2"].sum())
            code = str(compact.graph)
            assert "gated" not in code
            assert "fxprune" not in code


def test_soft_gates_of_the_mixed_model(mixed: tuple[Any, Tensor]) -> None:
    gated, x = mixed
    gated.set_keep(random_keep(gated, 0.5))
    hard = run(gated, x)
    vector = gated.get_submodule(GATES).value[:-1].double()
    with gated.soft_gates(vector):
        assert_close(run(gated, x), hard)

    def loss(vector: Tensor) -> Tensor:
        with gated.soft_gates(vector):
            return gated(x).square().mean()

    start = torch.linspace(0.3, 0.9, gated.plan.n_units, dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, (start.requires_grad_(),), fast_mode=True)


def test_a_gated_model_with_statistics_copies_and_pickles(mixed: tuple[Any, Tensor]) -> None:
    gated, x = mixed
    gated.set_keep(random_keep(gated, 0.5))
    for again in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        assert_close(run(again, x), run(gated, x))
        assert_close(run(again.compact(), x), run(gated, x))


def test_torch_compile_sees_through_it(mixed: tuple[Any, Tensor]) -> None:
    gated, x = mixed
    gated.eval().set_keep(random_keep(gated, 0.5))
    compiled = torch.compile(gated, backend="eager", fullgraph=True)
    assert_close(run(compiled, x), run(gated, x))


@pytest.mark.parametrize("function", [False, True])
def test_a_group_norm_loses_positions_and_groups(function: bool) -> None:
    """Of 2 groups of 4 channels, the second and the last position go, or the first group, or all of these."""
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    gated = auto_gate(Grouped(function).double(), x)
    places, groups = gated.groups
    assert (places.size, groups.size) == (4, 2)
    for keep, left in (
        ({places.name: [1, 0, 1, 0]}, [1, 0, 1, 0, 1, 0, 1, 0]),
        ({groups.name: [0, 1]}, [0, 0, 0, 0, 1, 0, 1, 0]),
        ({places.name: [1, 1, 1, 1]}, [0, 0, 0, 0, 1, 1, 1, 1]),
    ):
        gated.set_keep({name: torch.tensor(mask) > 0 for name, mask in keep.items()})
        compact = assert_equal_to_compact(gated, x)
        vector = keep_vector(gated)
        assert gated.plan.kept(gated.plan.axes["norm.weight", 0], vector).tolist() == [
            bool(k) for k in left
        ]
        if not function:
            number = int(gated.keep[groups.name].sum())
            assert (compact.norm.num_groups, compact.norm.num_channels) == (number, sum(left))


class Grouped(nn.Module):
    """A group norm of 2 groups of 4 channels, as a module or as a function."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.make, self.norm, self.read = nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        y, norm = self.make(x), self.norm
        return self.read(F.group_norm(y, 2, norm.weight, norm.bias) if self.function else norm(y))


class Functional(nn.Module):
    """A group norm as a function, of a channel count that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.make(x)
        return self.read(F.group_norm(y, num_groups=y.size(1)))


def test_an_instance_norm_written_as_group_norm() -> None:
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    gated = auto_gate(Functional().double(), x)
    assert [g.size for g in gated.groups] == [8]
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, x)


@fx.wrap
def hidden(y: Tensor) -> Tensor:
    if isinstance(y, fx.Proxy):
        raise TypeError("this function cannot be traced")
    return y - y.mean(1, keepdim=True)


def test_a_statistic_inside_an_opaque_function_freezes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.read(hidden(self.make(x)))

    gated = auto_gate(Net(), torch.rand(1, 3, 4, 4))
    assert gated.groups == ()
    reason = next(f.reason for f in gated.frozen if str(f.member) == "make.weight[0]")
    assert "hidden" in reason
    assert "takes a statistic (mean) over it" in reason


class Between(nn.Module):
    """An operator between two convolutions, with a parameter per channel and a weight."""

    def __init__(self, apply: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.scale, self.weight = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8, 8, 3, 3))
        self.apply_op = apply

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.apply_op(self, self.make(x)))


def standardised(net: Any, y: Tensor, norm: Any) -> Tensor:
    return F.conv2d(y, norm(net.weight.reshape(1, 8, -1)).reshape_as(net.weight), padding=1)


def last(y: Tensor) -> Tensor:
    return y.permute(0, 2, 3, 1)


def second(y: Tensor) -> Tensor:
    return y.permute(0, 3, 1, 2)


IN_EXPORTED_GRAPHS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "layer_norm": lambda n, y: second(ATEN.layer_norm.default(last(y), [8], n.scale, None, 1e-5)),
    "rms_norm": lambda n, y: second(ATEN.rms_norm.default(last(y), [8], n.scale, 1e-5)),
    "group_norm": lambda n, y: ATEN.group_norm.default(y, 2, n.scale, None, 1e-5),
    "mean": lambda n, y: y - ATEN.mean.dim(y, [1], True),
    "var": lambda n, y: y - ATEN.var.correction(y, [1], correction=0, keepdim=True),
    "max": lambda n, y: y * ATEN.max.dim(y, 1, True)[0],
    "softmax": lambda n, y: ATEN.softmax.int(y, 1),
    "batch_norm of a weight": lambda n, y: standardised(
        n,
        y,
        lambda w: ATEN.batch_norm.default(w, None, None, None, None, True, 0.0, 1e-5, False),
    ),
}


@pytest.mark.parametrize("name", IN_EXPORTED_GRAPHS)
def test_spellings_of_exported_graphs(name: str) -> None:
    torch.manual_seed(0)
    model, x = Between(IN_EXPORTED_GRAPHS[name]).double(), torch.rand(2, 3, 5, 5).double()
    gated = auto_gate(model, x)
    assert any(str(m) == "make.weight[0]" for g in gated.groups for m in g.members)
    assert_close(run(gated, x), run(model, x))
    spelled = [
        str(n.target) for n in fx.symbolic_trace(model).graph.nodes if "aten" in str(n.target)
    ]
    for share in (0.3, 0.7):
        gated.set_keep(random_keep(gated, share))
        compact = assert_equal_to_compact(gated, x)
        assert [str(n.target) for n in compact.graph.nodes if "aten" in str(n.target)] == spelled


def test_weight_standardisation_by_batch_norm() -> None:
    """The weight's inputs are what the statistics run over; a spare channel there is not counted."""
    apply = IN_EXPORTED_GRAPHS["batch_norm of a weight"]
    by_function = Between(
        lambda n, y: standardised(n, y, lambda w: F.batch_norm(w, None, None, training=True))
    )
    torch.manual_seed(0)
    x = torch.rand(2, 3, 5, 5).double()
    for model in (Between(apply).double(), by_function.double()):
        gated = auto_gate(model, x)
        assert {g.size for g in gated.groups} == {8}
        assert len(gated.groups) == 2
        keep = torch.arange(8) % 3 > 0
        gated.set_keep({g.name: keep for g in gated.groups})
        weight = model.weight[keep][:, keep]
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        with torch.no_grad():
            y = F.conv2d(model.make(x)[:, keep], weight, padding=1)
            expected = F.conv2d(y, model.read.weight[:, keep], model.read.bias)
        assert_close(run(gated, x), [expected])
        assert_equal_to_compact(gated, x)
