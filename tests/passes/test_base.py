"""The machinery: a pass that breaks its contract is caught, whatever the way it breaks it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from fxprune.errors import (
    ConfigError,
    GateError,
    PassError,
    PostconditionError,
    PreconditionError,
)
from fxprune.passes.base import Edit, Pass, PassResult, Skip, fingerprint
from fxprune.passes.pipeline import Pipeline

EDIT = Edit("scripted", "add", "add", "mul", "a test")
Body = Callable[[GraphModule], object]


@dataclass(frozen=True)
class Scripted(Pass):
    """A pass that does what the test says."""

    name: ClassVar[str] = "scripted"

    body: Body
    needs: Body = lambda gm: None
    promises: Body = lambda gm: None

    def run(self, gm: GraphModule) -> PassResult:
        return self.body(gm)  # type: ignore[return-value]

    def requires(self, gm: GraphModule) -> None:
        self.needs(gm)

    def ensures(self, gm: GraphModule) -> None:
        self.promises(gm)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x))) + 1


@pytest.fixture
def gm() -> GraphModule:
    return symbolic_trace(Net().eval())


def node(gm: GraphModule, name: str) -> torch.fx.Node:
    return next(n for n in gm.graph.nodes if n.name == name)


def retarget(gm: GraphModule) -> None:
    node(gm, "add").target = operator.mul


def slice_weight(gm: GraphModule) -> None:
    gm.conv.weight = nn.Parameter(gm.conv.weight[:2].detach())


def to_half(gm: GraphModule) -> None:
    gm.norm.running_mean = gm.norm.running_mean.half()


def swap_module(gm: GraphModule) -> None:
    gm.act = nn.Identity()


def rescale(gm: GraphModule) -> None:
    with torch.no_grad():
        gm.conv.weight.mul_(2)


def nothing(gm: GraphModule) -> None:
    pass


def reporting(change: Callable[[GraphModule], None], changed: bool, *edits: Edit) -> Scripted:
    def body(gm: GraphModule) -> PassResult:
        change(gm)
        return PassResult(gm, changed, edits)

    return Scripted(body)


def raising(error: Exception) -> Body:
    def body(gm: GraphModule) -> None:
        raise error

    return body


HONEST = reporting(nothing, False)


@pytest.mark.parametrize("change", [retarget, slice_weight, to_half, swap_module])
def test_a_change_reported_is_accepted(gm: GraphModule, change: Callable[..., None]) -> None:
    result = reporting(change, True, EDIT)(gm)
    assert result == PassResult(gm, True, (EDIT,), ())


@pytest.mark.parametrize("change", [retarget, slice_weight, to_half, swap_module])
def test_a_change_hidden_is_caught(gm: GraphModule, change: Callable[..., None]) -> None:
    with pytest.raises(PassError, match=r"'scripted' reports no change, but it changed"):
        reporting(change, False)(gm)


def test_the_error_shows_what_changed(gm: GraphModule) -> None:
    with pytest.raises(PassError, match=r"weight: \(3, 2, 1, 1\).* became .*\(2, 2, 1, 1\)"):
        reporting(slice_weight, False)(gm)


def test_a_change_invented_is_caught(gm: GraphModule) -> None:
    with pytest.raises(PassError, match="reports a change, but changed no node, shape or dtype"):
        reporting(nothing, True)(gm)


def test_values_alone_need_an_edit(gm: GraphModule) -> None:
    assert reporting(rescale, True, EDIT)(gm).changed
    with pytest.raises(PassError, match="reports a change, but"):
        reporting(rescale, True)(gm)


def test_edits_without_changed_are_caught(gm: GraphModule) -> None:
    with pytest.raises(PassError, match="reports no change, but it changed the module"):
        reporting(nothing, False, EDIT)(gm)


def test_the_result_is_recompiled(gm: GraphModule) -> None:
    x = torch.rand(1, 2, 4, 4)
    before = gm(x)
    torch.testing.assert_close(reporting(retarget, True, EDIT)(gm).module(x), before - 1)


def test_ensures_sees_the_result_and_requires_the_input(gm: GraphModule) -> None:
    def weight_rows(seen: list[int]) -> Body:
        return lambda gm: seen.append(gm.conv.weight.shape[0])

    before: list[int] = []
    after: list[int] = []

    def body(gm: GraphModule) -> PassResult:
        slice_weight(gm)
        return PassResult(gm, True, (EDIT,))

    Scripted(body, needs=weight_rows(before), promises=weight_rows(after))(gm)
    assert (before, after) == ([3], [2])


def test_ensures_sees_recompiled_code(gm: GraphModule) -> None:
    def uses_mul(gm: GraphModule) -> None:
        if " * 1" not in gm.code:
            raise PostconditionError("the code is old")

    def body(gm: GraphModule) -> PassResult:
        retarget(gm)
        return PassResult(gm, True, (EDIT,))

    assert Scripted(body, promises=uses_mul)(gm).changed


def test_a_broken_promise_is_caught_on_the_result(gm: GraphModule) -> None:
    def no_mul(gm: GraphModule) -> None:
        if any(n.target is operator.mul for n in gm.graph.nodes):
            raise PostconditionError("There is a product.")

    def body(gm: GraphModule) -> PassResult:
        retarget(gm)
        return PassResult(gm, True, (EDIT,))

    with pytest.raises(PostconditionError, match="There is a product"):
        Scripted(body, promises=no_mul)(gm)


def test_requires_stops_before_anything_is_changed(gm: GraphModule) -> None:
    before = fingerprint(gm)
    refusing = Scripted(retarget, needs=raising(PreconditionError("Not this one.")))
    with pytest.raises(PreconditionError, match="Not this one"):
        refusing(gm)
    assert fingerprint(gm) == before


@pytest.mark.parametrize("stage", ["run", "requires", "ensures"])
def test_a_foreign_exception_is_wrapped(gm: GraphModule, stage: str) -> None:
    cause = KeyError("conv")
    bodies = {"run": HONEST.body, "requires": nothing, "ensures": nothing, stage: raising(cause)}
    broken = Scripted(bodies["run"], bodies["requires"], bodies["ensures"])
    with pytest.raises(PassError, match=f"'scripted' failed in {stage}: KeyError: 'conv'") as info:
        broken(gm)
    assert info.value.__cause__ is cause


def test_our_own_exceptions_pass_through(gm: GraphModule) -> None:
    error = GateError("Such a mask does not exist.")
    with pytest.raises(GateError) as info:
        Scripted(raising(error))(gm)
    assert info.value is error


def test_an_interrupt_is_not_wrapped(gm: GraphModule) -> None:
    def body(gm: GraphModule) -> PassResult:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scripted(body)(gm)


def test_an_invalid_result_is_caught(gm: GraphModule) -> None:
    def body(gm: GraphModule) -> PassResult:
        node(gm, "conv").target = "nowhere"
        return PassResult(gm, True, (EDIT,))

    with pytest.raises(PostconditionError, match=r"'scripted' left a graph that is not valid"):
        Scripted(body)(gm)


@pytest.mark.parametrize("result", [None, (), "done"])
def test_the_result_must_be_a_pass_result(gm: GraphModule, result: object) -> None:
    with pytest.raises(PassError, match="'scripted' must return a PassResult"):
        Scripted(lambda gm: result)(gm)


def test_the_result_must_be_the_same_module(gm: GraphModule) -> None:
    other = symbolic_trace(Net())
    with pytest.raises(PassError, match="must rewrite the module in place"):
        Scripted(lambda gm: PassResult(other, False))(gm)


@pytest.mark.parametrize("thing", [Net(), None, "model"], ids=["module", "None", "str"])
def test_only_graph_modules_are_accepted(thing: GraphModule) -> None:
    with pytest.raises(PreconditionError, match=rf"GraphModule.\n.*a {type(thing).__name__}"):
        HONEST(thing)


def test_a_graph_without_output_is_refused(gm: GraphModule) -> None:
    gm.graph.erase_node(node(gm, "output"))
    with pytest.raises(PreconditionError, match="has no output node"):
        HONEST(gm)


def test_an_invalid_graph_is_refused(gm: GraphModule) -> None:
    del gm.conv
    with pytest.raises(PreconditionError, match="given to the pass 'scripted' is not valid.*conv"):
        HONEST(gm)


def test_a_pass_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="Nameless has no name"):

        class Nameless(Pass):
            def run(self, gm: GraphModule) -> PassResult:
                return PassResult(gm, False)


def test_results_are_frozen(gm: GraphModule) -> None:
    with pytest.raises(FrozenInstanceError):
        HONEST(gm).changed = True  # type: ignore[misc]


def test_fingerprint_covers_nested_graphs() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = symbolic_trace(Net())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            return isinstance(m, GraphModule) or super().is_leaf_module(m, qualified_name)

    outer = Outer()
    gm = GraphModule(outer, Tracer().trace(outer))
    before = fingerprint(gm)
    retarget(gm.inner)
    assert fingerprint(gm) != before


def test_fingerprint_sees_untied_parameters() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight
    gm = symbolic_trace(net)
    before = fingerprint(gm)
    gm.get_submodule("1").weight = nn.Parameter(net[0].weight.detach().clone())
    assert fingerprint(gm) != before


def test_a_pipeline_merges_what_its_members_report(gm: GraphModule) -> None:
    skip = Skip("scripted", "conv", "a test")
    second = Edit("scripted", "conv", "3", "2", "a test")
    skipping = Scripted(lambda gm: PassResult(gm, False, (), (skip,)))
    pipeline = Pipeline(
        (reporting(retarget, True, EDIT), skipping, Pipeline((reporting(rescale, True, second),)))
    )
    assert pipeline(gm) == PassResult(gm, True, (EDIT, second), (skip,))


@pytest.mark.parametrize("passes", [(), (HONEST, HONEST)])
def test_a_pipeline_without_changes_has_not_changed(
    gm: GraphModule, passes: tuple[Pass, ...]
) -> None:
    assert Pipeline(passes)(gm) == PassResult(gm, False)


@pytest.mark.parametrize(
    ("position", "note"),
    [
        (0, "pass: scripted, the first to run"),
        (1, "pass: scripted, after scripted"),
        (2, "pass: scripted, after scripted, pipeline"),
    ],
)
def test_a_pipeline_names_what_ran_before(gm: GraphModule, position: int, note: str) -> None:
    error = GateError("Such a mask does not exist.")
    members: list[Pass] = [HONEST, Pipeline((HONEST,))]
    members.insert(position, Scripted(raising(error)))
    with pytest.raises(GateError) as info:
        Pipeline(tuple(members))(gm)
    assert info.value is error
    assert [n.strip() for n in info.value.__notes__] == [note]


@pytest.mark.parametrize("passes", [[HONEST], HONEST, (Scripted,), (None,)])
def test_a_pipeline_takes_a_tuple_of_passes(passes: tuple[Pass, ...]) -> None:
    with pytest.raises(ConfigError, match="must be a tuple of Pass objects. Got .* instead"):
        Pipeline(passes)


def test_pipelines_with_the_same_passes_are_equal() -> None:
    assert Pipeline((HONEST,)) == Pipeline((HONEST,))
    assert hash(Pipeline((HONEST,))) == hash(Pipeline((HONEST,)))
    assert Pipeline((HONEST,)) != Pipeline(())
