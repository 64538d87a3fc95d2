"""The passes that need a plan: insert gates, remove them, slice tensors, rewrite sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gate_checks import assert_close, run
from random_nets import random_net
from small_nets import (
    AuxHead,
    Concat,
    Depthwise,
    Grouped,
    InPlace,
    LayerNormMlp,
    Residual,
    image,
    rows,
)
from torch import Tensor, fx, nn

from fxprune.analysis.build import Analysis
from fxprune.analysis.plan import Keep, Plan
from fxprune.capture import capture
from fxprune.errors import PreconditionError
from fxprune.gates import Gate, GateVector, StatisticMask
from fxprune.passes.base import Pass, called_module, fingerprint
from fxprune.passes.insert_gates import GATES, InsertGates
from fxprune.passes.remove_gates import RemoveGates
from fxprune.passes.resize_literals import ResizeLiterals
from fxprune.passes.slice_channels import SliceChannels
from fxprune.statistics import GatedLayerNorm


class Captured(NamedTuple):
    gm: fx.GraphModule
    plan: Plan
    x: Tensor


def captured(model: nn.Module, x: Tensor, mode: str = "eval") -> Captured:
    """Capture and analyse a model, without gates."""
    found = capture(copy.deepcopy(model), ((x,), {}))
    plan = Analysis(found.root, found.graphs).run((x,), {}, lambda name: None)
    gm = fx.GraphModule(found.root, found.graphs[mode])
    return Captured(gm.train(mode == "train"), plan, x)


class Sizes(nn.Module):
    """Sizes written in the graph, of every kind that is rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(9, 4, 1)
        self.scale = nn.Parameter(torch.rand(1, 8, 1, 1))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.make(x) * self.scale.expand(2, 8, 6, 6)
        a, b = y.view(2, 8, 36).view(2, 8, 6, 6).split([3, 5], 1)
        y = torch.cat([a, b[:, 1:4], y.narrow(1, 2, 2)], 1)
        return self.read(nn.functional.pad(y, (0, 0, 0, 0, 0, 1)))


NETS: dict[str, Callable[[], Captured]] = {
    "residual": lambda: captured(Residual(), image()),
    "concat": lambda: captured(Concat(), image()),
    "depthwise": lambda: captured(Depthwise(), image()),
    "grouped": lambda: captured(Grouped(), image()),
    "in_place": lambda: captured(InPlace(), image()),
    "layer_norm_module": lambda: captured(LayerNormMlp(), rows()),
    "layer_norm_function": lambda: captured(LayerNormMlp(function=True), rows()),
    "eval_of_two_modes": lambda: captured(AuxHead(), image()),
    "sizes": lambda: captured(Sizes(), image()),
    **{f"random_{s}": lambda s=s: captured(*random_net(s)) for s in range(700, 705)},
}


every_net = pytest.mark.parametrize("name", NETS)


def some(plan: Plan, share: float = 0.5) -> Keep:
    """Draw a keep-vector with at least one unit of every group."""
    keep = np.random.default_rng(0).random(plan.n_units) < share
    for at in plan.group_slices().values():
        keep[at.start] |= not keep[at].any()
    return keep


def gate_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    return [node for node in gm.graph.nodes if isinstance(called_module(gm, node), Gate)]


def smaller(net: Captured, share: float = 0.5) -> Keep:
    """Slice and resize a captured net in place."""
    keep = some(net.plan, share)
    SliceChannels(net.plan, keep)(net.gm)
    ResizeLiterals(net.plan, keep)(net.gm)
    return keep


# -- insert and remove -----------------------------------------------------------------------------------------


@every_net
def test_inserting_then_removing_gives_the_same_graph(name: str) -> None:
    net = NETS[name]()
    before, expected = fingerprint(net.gm), run(net.gm, net.x)
    inserted = InsertGates(net.plan)(net.gm)
    assert inserted.changed
    assert fingerprint(net.gm) != before
    assert len(inserted.edits) == len(
        net.plan.graphs["eval"].gates + net.plan.graphs["eval"].statistics
    )
    assert_close(run(net.gm, net.x), expected)
    removed = RemoveGates()(net.gm)
    assert removed.changed
    assert removed.edits
    assert fingerprint(net.gm) == before
    assert_close(run(net.gm, net.x), expected)


@every_net
def test_removing_twice_changes_nothing_more(name: str) -> None:
    net = NETS[name]()
    InsertGates(net.plan)(net.gm)
    RemoveGates()(net.gm)
    before = fingerprint(net.gm)
    second = RemoveGates()(net.gm)
    assert (second.changed, second.edits) == (False, ())
    assert fingerprint(net.gm) == before


def test_removing_leaves_a_net_without_gates_alone() -> None:
    gm = fx.symbolic_trace(Residual())
    assert not RemoveGates()(gm).changed


def test_inserting_twice_is_refused() -> None:
    net = NETS["residual"]()
    InsertGates(net.plan)(net.gm)
    before = fingerprint(net.gm)
    with pytest.raises(PreconditionError, match=r"has gates already[\s\S]*remove_gates first"):
        InsertGates(net.plan)(net.gm)
    assert fingerprint(net.gm) == before


def test_the_plan_of_another_net_is_refused() -> None:
    net, other = NETS["residual"](), NETS["concat"]()
    before = fingerprint(net.gm)
    with pytest.raises(PreconditionError, match=r"made for another graph[\s\S]*no node named"):
        InsertGates(other.plan)(net.gm)
    assert fingerprint(net.gm) == before


def test_both_modes_share_one_gate_vector_and_no_gate() -> None:
    x = image()
    found = capture(AuxHead(), ((x,), {}))
    plan = Analysis(found.root, found.graphs).run((x,), {}, lambda name: None)
    train = fx.GraphModule(found.root, found.graphs["train"])
    InsertGates(plan, "train")(train)
    assert all("_train" in str(node.target) for node in gate_nodes(train))
    first = fx.GraphModule(found.root, found.graphs["eval"])
    first.add_module(GATES, train.get_submodule(GATES))
    InsertGates(plan, "eval")(first)
    assert first.get_submodule(GATES) is train.get_submodule(GATES)


def test_gates_stand_on_the_edges_into_what_sums() -> None:
    net = NETS["residual"]()
    InsertGates(net.plan)(net.gm)
    edges = {str(n.args[0]): sorted(str(user) for user in n.users) for n in gate_nodes(net.gm)}
    assert edges == {"stem": ["inner"], "sigmoid": ["outer"], "relu": ["head"]}


def test_consumers_share_the_gate_of_a_value() -> None:
    net = NETS["in_place"]()
    InsertGates(net.plan)(net.gm)
    users = [str(user) for gate in gate_nodes(net.gm) for user in gate.users]
    assert sorted(users) == ["one", "two"]
    assert len({str(gate.target) for gate in gate_nodes(net.gm)}) == 1


def test_a_value_that_is_read_twice_stays_ungated_where_nothing_is_summed() -> None:
    """In a residual block the shortcut is the value itself, the branch reads its gated form."""
    net = NETS["residual"]()
    InsertGates(net.plan)(net.gm)
    add = next(node for node in net.gm.graph.nodes if node.name == "add")
    assert [str(arg) for arg in add.args] == ["stem", "norm"]


@pytest.mark.parametrize("keep_first", [False, True])
def test_a_gate_sees_what_an_in_place_activation_wrote(keep_first: bool) -> None:
    net = NETS["in_place"]()
    InsertGates(net.plan)(net.gm)
    vector = net.gm.get_submodule(GATES)
    assert isinstance(vector, GateVector)
    keep = torch.arange(8) % 2 == keep_first
    vector.set_hard(keep)
    model = InPlace()
    model.load_state_dict({k: v for k, v in net.gm.state_dict().items() if not k.startswith(GATES)})
    with torch.no_grad():
        y = nn.functional.silu(model.make(net.x)) * keep.view(8, 1, 1)
        expected = model.one(y) + model.two(y)
    assert_close(run(net.gm, net.x), [expected])


def test_a_layer_norm_becomes_gated_and_plain_again() -> None:
    net = NETS["layer_norm_module"]()
    InsertGates(net.plan)(net.gm)
    norm = net.gm.get_submodule("norm")
    assert isinstance(norm, GatedLayerNorm)
    assert [type(m) for m in net.gm.get_submodule(GATES).children()].count(StatisticMask) == 1
    RemoveGates()(net.gm)
    plain = net.gm.get_submodule("norm")
    assert type(plain) is nn.LayerNorm
    assert plain.weight is norm.weight


# -- slice and resize ------------------------------------------------------------------------------------------


@every_net
def test_slicing_and_resizing_twice_changes_nothing_more(name: str) -> None:
    net = NETS[name]()
    keep = some(net.plan)
    for make in (SliceChannels, ResizeLiterals):
        one: Pass = make(net.plan, keep)
        one(net.gm)
        before = fingerprint(net.gm)
        second = one(net.gm)
        assert (second.changed, second.edits) == (False, ())
        assert fingerprint(net.gm) == before


@every_net
def test_keeping_everything_changes_nothing(name: str) -> None:
    net = NETS[name]()
    before, expected = fingerprint(net.gm), run(net.gm, net.x)
    keep = np.ones(net.plan.n_units, dtype=bool)
    assert not SliceChannels(net.plan, keep)(net.gm).changed
    assert not ResizeLiterals(net.plan, keep)(net.gm).changed
    assert fingerprint(net.gm) == before
    assert_close(run(net.gm, net.x), expected)


@every_net
def test_a_sliced_net_computes_what_the_gated_one_does(name: str) -> None:
    net, twin = NETS[name](), NETS[name]()
    twin.gm.load_state_dict(net.gm.state_dict())
    InsertGates(twin.plan)(twin.gm)
    keep = smaller(net)
    vector = twin.gm.get_submodule(GATES)
    assert isinstance(vector, GateVector)
    vector.set_hard(torch.from_numpy(keep))
    assert_close(run(net.gm, net.x), run(twin.gm, net.x))


def test_a_plan_for_other_shapes_is_refused() -> None:
    net = NETS["residual"]()
    net.gm.get_submodule("inner").weight = nn.Parameter(torch.rand(6, 9, 3, 3))
    with pytest.raises(
        PreconditionError, match=r"made for other shapes[\s\S]*inner.weight[\s\S]*\(6, 9, 3, 3\)"
    ):
        SliceChannels(net.plan, some(net.plan))(net.gm)


class Layers(nn.Module):
    """One layer of every kind that knows its own sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)
        self.make = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.act = nn.PReLU(8)
        self.depth = nn.Conv1d(8, 16, 1, groups=8)
        self.batch = nn.BatchNorm1d(16)
        self.grouped = nn.Conv1d(16, 4, 1, groups=2)
        self.up = nn.ConvTranspose1d(4, 8, 2, groups=4)
        self.read = nn.Linear(8, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.make(x) + self.table(torch.arange(5)))
        y = self.batch(self.depth(self.act(y.unsqueeze(-1))))
        return self.read(self.up(self.grouped(y)).sum(-1))


def test_modules_know_their_new_sizes() -> None:
    net = captured(Layers(), rows())
    keep = smaller(net, 0.6)
    slices = net.plan.group_slices()
    made = int(keep[slices["table" if "table" in slices else "make"]].sum())
    layers = net.gm.get_submodule
    assert layers("make").out_features == len(layers("make").weight)
    assert layers("table").embedding_dim == layers("make").out_features
    assert layers("norm").normalized_shape == (layers("make").out_features,)
    assert layers("act").num_parameters == layers("make").out_features
    assert layers("depth").groups == layers("depth").in_channels == layers("make").out_features
    assert layers("depth").out_channels == 2 * layers("depth").groups
    assert layers("batch").num_features == layers("depth").out_channels
    assert layers("grouped").groups == 2
    assert layers("grouped").in_channels == layers("batch").num_features
    assert layers("read").in_features == layers("up").out_channels
    assert made <= 8
    assert "groups=" in repr(layers("depth"))


def test_a_sliced_parameter_stays_a_parameter_and_a_tied_one_tied() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[4].weight = nn.Parameter(torch.rand(3, 8), requires_grad=False)
    model[2].bias = model[0].bias
    net = captured(model.double(), rows())
    smaller(net)
    layers = net.gm.get_submodule
    assert layers("2").bias is layers("0").bias
    assert isinstance(layers("0").bias, nn.Parameter)
    assert layers("0").weight.requires_grad
    assert not layers("4").weight.requires_grad
    assert layers("4").weight.is_contiguous()
    assert len(run(net.gm, net.x)) == 1


def test_sizes_in_the_graph_are_rewritten() -> None:
    net = NETS["sizes"]()
    text = str(net.gm.graph)
    keep = np.array([1, 0, 1, 0, 1, 1, 0, 1], dtype=bool)
    assert net.plan.n_units >= 8
    full = np.ones(net.plan.n_units, dtype=bool)
    full[:8] = keep
    SliceChannels(net.plan, full)(net.gm)
    assert str(net.gm.graph) == text, "slicing must not touch the graph"
    result = ResizeLiterals(net.plan, full)(net.gm)
    assert result.changed
    assert len(result.edits) >= 5
    shown = str(net.gm.graph)
    for size in ("(2, 5, 36)", "(2, 5, 6, 6)", "[2, 3]"):
        assert size in shown, shown
    assert len(run(net.gm, net.x)) == 1
