"""Dead code goes, and nothing an output depends on goes with it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from fxprune.errors import PostconditionError, PreconditionError
from fxprune.passes.base import PassResult
from fxprune.passes.drop_dead_code import DropDeadCode


class Calls(nn.Module):
    """Call a function with a number of submodules at hand."""

    def __init__(self, body: Callable[[Calls, Tensor], object]) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout()
        self.block = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
        self.scale = nn.Parameter(torch.rand(1))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def call(function: Callable[..., object], first: Tensor, *args: object) -> Tensor:
    """Record a call that tracing does not record by itself; `first` is a proxy here."""
    return first.tracer.create_proxy("call_function", function, (first, *args), {})


def names(gm: GraphModule) -> list[str]:
    return [n.name for n in gm.graph.nodes if n.op not in ("placeholder", "output")]


# Every value but the one returned is dead.
DEAD: dict[str, Callable[[Calls, Tensor], object]] = {
    "chain": lambda m, x: (m.norm(m.conv(x)) + 1, x * 2)[1],
    "in place on a dead value": lambda m, x: (m.conv(m.relu(m.norm(m.conv(x)))), x * 2)[1],
    "functional in place": lambda m, x: (F.relu(m.norm(x), inplace=True), x * 2)[1],
    "functional in place by position": lambda m, x: (F.relu(x + 1, True), x * 2)[1],
    "method in place": lambda m, x: ((x + 1).mul_(2).view(-1), x * 2)[1],
    "assignment to a dead value": lambda m, x: (call(operator.setitem, x + 1, 0, 0.0), x * 2)[1],
    "not in place although it is a name": lambda m, x: (F.relu(x, False), x * 2)[1],
    "random": lambda m, x: (torch.rand_like(x), call(torch.rand, x.size()), m.drop(x), x * 2)[3],
    "updates statistics nobody reads": lambda m, x: (m.norm(x), x * 2)[1],
    "cat of a dead in-place value": lambda m, x: (torch.cat([F.relu_(x + 1), x]), x * 2)[1],
}


@pytest.mark.parametrize("body", DEAD.values(), ids=DEAD.keys())
def test_dead_code_goes(body: Callable[[Calls, Tensor], object]) -> None:
    gm = symbolic_trace(Calls(body))
    x = torch.rand(1, 2, 3, 3)
    expected = copy.deepcopy(gm)(x.clone())
    result = DropDeadCode()(gm)
    assert len(names(gm)) == 1
    assert result.changed
    assert not result.skipped
    assert not list(gm.parameters())
    torch.testing.assert_close(gm(x), expected, rtol=0, atol=0)


def write_through_view(m: Calls, x: Tensor) -> Tensor:
    y = x + 1
    y[:, 0].zero_()
    return y


def write_through_dropout(m: Calls, x: Tensor) -> Tensor:
    y = x + 1
    m.drop(y).mul_(2)
    return y


def write_then_read(m: Calls, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.relu(y)
    return y + 1


def write_twice(m: Calls, x: Tensor) -> Tensor:
    y = x + 1
    y.add_(m.conv(x)).mul_(2)
    return y


def write_input(m: Calls, x: Tensor) -> Tensor:
    y = x * 2
    x.add_(1)
    return y


def write_buffer(m: Calls, x: Tensor) -> Tensor:
    m.steps.add_(1)
    return x * 2


def write_out(m: Calls, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    torch.add(x, 1, out=y)
    return y


def write_item(m: Calls, x: Tensor) -> Tensor:
    y = x + 1
    call(operator.setitem, y, 0, 0.0)
    return y


def write_iadd(m: Calls, x: Tensor) -> Tensor:
    y = x + 1
    call(operator.iadd, y, x)
    return y


def functional_in_place(m: Calls, x: Tensor) -> Tensor:
    y = x - 0.5
    F.relu(y, True)
    return y


def shared_statistics(m: Calls, x: Tensor) -> Tensor:
    m.norm(x * 3)
    return m.norm(x)


def assertion(m: Calls, x: Tensor) -> Tensor:
    torch._assert(x.dim() == 4, "four dimensions")
    return x * 2


NEEDED = [
    write_through_view,
    write_through_dropout,
    write_then_read,
    write_twice,
    write_input,
    write_buffer,
    write_out,
    write_item,
    write_iadd,
    functional_in_place,
    shared_statistics,
    assertion,
]


@pytest.mark.parametrize("body", NEEDED)
def test_effects_stay(body: Callable[[Calls, Tensor], Tensor]) -> None:
    gm = symbolic_trace(Calls(body).eval() if "drop" in body.__name__ else Calls(body))
    before = copy.deepcopy(gm)
    DropDeadCode()(gm)
    assert names(gm) == names(before)
    inputs = torch.rand(2, 1, 2, 3, 3)
    mine, theirs = inputs.clone(), inputs.clone()
    for x, y in zip(mine, theirs, strict=True):
        torch.testing.assert_close(gm(x), before(y), rtol=0, atol=0)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    kept = dict(before.named_buffers())
    for name, buffer in gm.named_buffers():
        torch.testing.assert_close(buffer, kept[name], rtol=0, atol=0)


def test_a_node_kept_for_what_it_writes_is_reported() -> None:
    (skip,) = DropDeadCode()(symbolic_trace(Calls(write_then_read))).skipped
    assert skip.node == "relu"
    assert skip.reason == "it writes in place into memory that conv may share"


def test_a_node_kept_for_its_statistics_is_reported() -> None:
    (skip,) = DropDeadCode()(symbolic_trace(Calls(shared_statistics))).skipped
    assert skip.reason == "it updates running statistics that norm_1 reads"


def test_shared_statistics_are_only_read_in_eval_mode() -> None:
    gm = symbolic_trace(Calls(shared_statistics).eval())
    DropDeadCode()(gm)
    assert names(gm) == ["norm_1"]


def test_unused_placeholders_stay() -> None:
    def model(x: Tensor, unused: Tensor) -> Tensor:
        return x + 1

    gm = symbolic_trace(model)
    assert not DropDeadCode()(gm).changed
    assert torch.equal(gm(torch.zeros(2), torch.ones(2)), torch.ones(2))


def test_edits_name_what_went() -> None:
    gm = symbolic_trace(Calls(lambda m, x: (m.conv(x), x * m.scale)[1]))
    edits = DropDeadCode()(gm).edits
    assert [(edit.node, edit.before, edit.after, edit.why) for edit in edits] == [
        ("conv", "call_module conv", "", "nobody uses its value"),
        ("conv", "Conv2d", "", "no node refers to it"),
    ]
    assert list(dict(gm.named_parameters())) == ["scale"]


class Nested(nn.Module):
    """A container with parts that are used and parts that are not, and a tensor read directly."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Module()
        self.block.used = nn.Linear(2, 2)
        self.block.unused = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        self.block.scale = nn.Parameter(torch.rand(2))
        self.block.shift = nn.Parameter(torch.rand(2))
        self.block.register_buffer("mask", torch.ones(2))
        self.twin = self.block.used

    def forward(self, x: Tensor) -> Tensor:
        return self.block.used(x) * self.block.scale


def test_only_what_no_node_refers_to_is_deleted() -> None:
    # a GraphModule keeps only what its graph names; this one has the rest as well
    traced = symbolic_trace(Nested())
    gm = GraphModule(traced, traced.graph)
    rest = Nested().block
    gm.block.unused, gm.block.shift = rest.unused, rest.shift
    gm.block.register_buffer("mask", rest.mask)
    gm.twin = gm.block.used
    result = DropDeadCode()(gm)
    assert [(e.node, e.before) for e in result.edits] == [
        ("block.unused", "Sequential"),
        ("twin", "Linear"),
        ("block.shift", "Parameter"),
        ("block.mask", "Tensor"),
    ]
    assert set(dict(gm.named_parameters())) == {
        "block.used.weight",
        "block.used.bias",
        "block.scale",
    }


def test_what_a_leaf_module_holds_stays() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            return True

    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    gm = GraphModule(model, Tracer().trace(model))
    assert not DropDeadCode()(gm).changed
    assert dict(gm.named_parameters()).keys() == dict(model.named_parameters()).keys()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.norm = nn.BatchNorm2d(2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x * 2
        return y + self.relu(self.norm(self.conv(y)))


@pytest.mark.parametrize("training", [True, False])
def test_an_exported_branch_goes_with_its_counters(training: bool) -> None:
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        Residual().train(training), (torch.rand(2, 2, 4, 4),), dynamic_shapes=(batch,)
    )
    gm = program.module()
    add = next(n for n in gm.graph.nodes if n.target is torch.ops.aten.add.Tensor)
    add.replace_all_uses_with(add.args[0])
    DropDeadCode()(gm)
    assert [n.target for n in gm.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.mul.Tensor
    ]
    assert not list(gm.named_buffers())
    assert not list(gm.named_parameters())


def test_an_exported_training_model_keeps_its_counters() -> None:
    gm = torch.export.export(Residual().train(), (torch.rand(2, 2, 4, 4),)).module()
    before = [n.name for n in gm.graph.nodes]
    DropDeadCode()(gm)
    assert [n.name for n in gm.graph.nodes] == before


def test_the_promise_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    gm = symbolic_trace(Calls(lambda m, x: (m.conv(x), x * 2)[1]))
    monkeypatch.setattr(DropDeadCode, "run", lambda self, gm: PassResult(gm, False))
    with pytest.raises(PostconditionError, match="left dead code.\n.*conv"):
        DropDeadCode()(gm)


def test_a_module_that_was_not_captured_is_refused() -> None:
    with pytest.raises(PreconditionError, match="works on a torch.fx.GraphModule"):
        DropDeadCode()(nn.Linear(1, 1))  # type: ignore[arg-type]
