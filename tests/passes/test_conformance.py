"""What every pass must do, whatever it is for.

A new pass adds one row to CASES: the pass, a module it changes, and inputs to compare outputs on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

import fxprune.passes
from fxprune.errors import PreconditionError
from fxprune.passes import DropDeadCode, FoldBatchNorm, Pass, Pipeline
from fxprune.passes.base import fingerprint


class Case(NamedTuple):
    make: Callable[[], Pass]
    model: Callable[[], GraphModule]
    inputs: tuple[Tensor, ...]


class FanOut(nn.Module):
    """Two branches over one value, one of them read twice, and a branch nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.right = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.unused = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        self.unused(y)
        z = self.right(y)
        return self.left(y) + self.norm(z) * z


def fan_out() -> GraphModule:
    model = FanOut()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return symbolic_trace(model.double().eval())


IMAGES = (torch.rand(2, 3, 6, 6, dtype=torch.float64),)

CASES = {
    "DropDeadCode": Case(DropDeadCode, fan_out, IMAGES),
    "FoldBatchNorm": Case(FoldBatchNorm, fan_out, IMAGES),
    "Pipeline": Case(lambda: Pipeline((FoldBatchNorm(), DropDeadCode())), fan_out, IMAGES),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def public_passes() -> Iterator[str]:
    for name in fxprune.passes.__all__:
        thing = getattr(fxprune.passes, name)
        if isinstance(thing, type) and issubclass(thing, Pass) and thing is not Pass:
            yield name


def test_every_public_pass_has_a_case() -> None:
    assert sorted(public_passes()) == sorted(CASES)


def test_the_function_is_kept(case: Case) -> None:
    gm = case.model()
    expected = copy.deepcopy(gm)(*case.inputs)
    assert case.make()(gm).changed
    torch.testing.assert_close(gm(*case.inputs), expected, rtol=1e-12, atol=1e-12)


def test_a_second_run_changes_nothing(case: Case) -> None:
    gm = case.model()
    first = case.make()(gm)
    before = fingerprint(gm)
    second = case.make()(gm)
    assert first.edits
    assert not second.changed
    assert second.edits == ()
    assert fingerprint(gm) == before


def test_equal_options_give_equal_results(case: Case) -> None:
    assert case.make() == case.make()
    one, other = case.make()(case.model()), case.make()(case.model())
    assert (one.edits, one.skipped) == (other.edits, other.skipped)
    assert fingerprint(one.module) == fingerprint(other.module)


def test_the_result_is_valid_and_survives_a_copy(case: Case) -> None:
    gm = case.make()(case.model()).module
    gm.graph.lint()
    twin = copy.deepcopy(gm)
    torch.testing.assert_close(twin(*case.inputs), gm(*case.inputs), rtol=0, atol=0)


def test_what_is_not_a_graph_module_is_refused(case: Case) -> None:
    with pytest.raises(PreconditionError, match=r"works on a torch.fx.GraphModule"):
        case.make()(nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_broken_graph_is_refused_untouched(case: Case) -> None:
    gm = case.model()
    call = next(n for n in gm.graph.nodes if n.op == "call_module")
    call.target = "nowhere"
    before = fingerprint(gm)
    with pytest.raises(PreconditionError, match=r"is not valid.*nowhere"):
        case.make()(gm)
    assert fingerprint(gm) == before


def test_options_are_frozen(case: Case) -> None:
    one = case.make()
    assert is_dataclass(one)
    for field in fields(one):
        with pytest.raises(FrozenInstanceError):
            setattr(one, field.name, None)
