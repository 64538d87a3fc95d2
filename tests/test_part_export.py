"""Of a model that tracing cannot follow, only the part that resists is exported."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close, assert_cost, assert_equal_to_compact, random_keep, run
from torch import Tensor, nn

import fxprune
from fxprune.capture import capture, exported
from fxprune.capture.parts import Parts
from fxprune.errors import CaptureError
from fxprune.gated_regions import GatedRegions
from fxprune.inputs import normalize_inputs

SHAPES = "tracing with shapes"
X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def require_tensor(x: Any) -> None:
    """Ask where no answer is prepared for the type of a value, which a traced one does not have."""
    if not torch.jit.isinstance(x, Tensor):
        raise TypeError("not a tensor")


class Block(nn.Module):
    """Resists tracing; export can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.bn, self.drop = nn.BatchNorm2d(12), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        require_tensor(x)
        return self.out(self.drop(F.relu(self.bn(self.conv(x)))))


class Functional(Block):
    """Reads its mode itself."""

    def forward(self, x: Tensor) -> Tensor:
        require_tensor(x)
        y = F.dropout(self.conv(x), 0.4, self.training)
        return self.out(y * 2 if self.training else self.bn(y))


class Constant(Block):
    """Makes a tensor of its own."""

    def forward(self, x: Tensor) -> Tensor:
        require_tensor(x)
        return super().forward(x * torch.tensor([0.5, 2.0] * 4, dtype=x.dtype)[:, None, None])


class Listed(nn.Module):
    """Is given a list, and more that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 8, 1)

    def forward(self, x: dict[str, Any], *, times: int = 1) -> tuple[Tensor, int]:
        require_tensor(x["parts"][0])
        return self.conv(torch.cat(x["parts"], 1)) * times, 3


class Appends(nn.Module):
    """Changes a list that it is given: no graph of it alone does."""

    def forward(self, x: Tensor, seen: list[Tensor]) -> None:
        require_tensor(x)
        seen.append(x + 1)


class Around(Block):
    """Can be exported, though what is inside cannot be on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Appends()

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        self.inner(x, seen)
        return self.out(self.conv(seen[0]))


class Net(nn.Module):
    """One block between convolutions that tracing follows."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.a, self.hard, self.b = nn.Conv2d(3, 8, 3), block, nn.Conv2d(8, 4, 1)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(self.between(F.relu(self.a(x)))))

    def between(self, y: Tensor) -> Tensor:
        return self.hard(y)


class Twice(Net):
    def between(self, y: Tensor) -> Tensor:
        return self.hard(self.hard(y)[..., ::2, ::2])


class WithList(Net):
    def between(self, y: Tensor) -> Tensor:
        made, times = self.hard({"parts": [y, y * 2]}, times=2)
        return made * times


NETS: dict[str, nn.Module] = {
    "modules": Net(Block()),
    "functions": Net(Functional()),
    "constant": Net(Constant()),
    "twice": Twice(Block()),
    "list": WithList(Listed()),
    "parent": Net(Around()),
}


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is exported."""
    made: list[str] = []
    original = exported.export_graph

    def noted(model: nn.Module, *rest: Any, **named: Any) -> Any:
        made.append(type(model).__name__)
        return original(model, *rest, **named)

    monkeypatch.setattr("fxprune.capture.parts.export_graph", noted)
    monkeypatch.setattr("fxprune.capture.exported.export_graph", noted)
    return made


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return copy.deepcopy(NETS[name]).double().eval()


@pytest.mark.parametrize("name", NETS)
def test_gated_equals_model_and_compact_in_both_modes(name: str, exports: list[str]) -> None:
    model = build(name)
    gated = fxprune.auto_gate(model, X)
    assert gated.settings.captured == SHAPES
    assert type(model).__name__ not in exports
    assert_close(run(gated, X), run(model, X))
    other = torch.rand(5, 3, 12, 10, dtype=torch.float64)
    assert_close(run(gated, other), run(model, other), "another size")
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    assert_close(run(compact, X), run(gated, X), "compact against gated")
    assert_cost(gated, compact, X)
    for part in (model, gated, compact):
        part.train()
    assert_close(run(compact, X, seed=1), run(compact, X, seed=1))
    assert not torch.equal(run(compact, X, seed=1)[0], run(compact, X, seed=2)[0])  # dropout
    gated.set_keep({group.name: torch.ones(group.size).bool() for group in gated.groups})
    assert_close(run(gated, X, seed=1), run(model, X, seed=1), "training mode")


def test_modules_inside_stay_modules(exports: list[str]) -> None:
    graph = fxprune.auto_gate(build("modules"), X).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    assert {"a", "b", "hard.conv", "hard.bn", "hard.drop", "hard.out"} <= called
    assert set(exports) == {"Block"}


def test_a_part_that_reads_its_mode_gives_two_graphs() -> None:
    way = (normalize_inputs(X), SHAPES)
    assert set(capture(build("functions"), *way).graphs) == {"eval", "train"}
    assert set(capture(build("modules"), *way).graphs) == {"eval"}


def test_statistics_of_a_norm_inside_follow_training() -> None:
    model = build("twice").train()
    gated = fxprune.auto_gate(model, X)
    run(model, X, seed=3)
    run(gated, X, seed=3)
    expected, found = dict(model.named_buffers()), dict(gated.named_buffers())
    for name, buffer in expected.items():
        torch.testing.assert_close(found[name], buffer, msg=name)
    assert int(expected["hard.bn.num_batches_tracked"]) == 2


def test_two_calls_at_two_sizes_are_two_exports(exports: list[str]) -> None:
    capture(build("twice"), normalize_inputs(X), SHAPES)
    assert exports == ["Block"] * 4  # at either size, in either mode


def test_the_module_around_is_exported_where_the_smallest_cannot_be(exports: list[str]) -> None:
    captured = capture(build("parent"), normalize_inputs(X), SHAPES)
    assert exports[:2] == ["Appends", "Around"]
    assert {"a", "b", "drop"} <= {str(n.target) for n in captured.graphs["eval"].nodes}


@pytest.mark.parametrize("name", ["constant", "functions"])
def test_save_and_load_make_the_same_graph(name: str, tmp_path: Path) -> None:
    gated = fxprune.auto_gate(build(name), X)
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    fxprune.save(compact, tmp_path / "m.pt")
    loaded = fxprune.load(tmp_path / "m.pt", copy.deepcopy(NETS[name]).double().eval())
    assert torch.equal(loaded(X), compact(X))
    assert loaded.state_dict().keys() == compact.state_dict().keys()


def test_models_with_many_parts_are_exported_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.capture.parts._MOST", 0)
    gated = fxprune.auto_gate(build("modules"), X)
    assert gated.settings.captured == "torch.export"


def test_an_export_that_does_not_help_is_not_repeated(
    exports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def useless(*_: Any) -> Any:
        raise TypeError("still no tensor")

    monkeypatch.setattr(Parts, "_export", lambda *_: exports.append("part") or useless)
    with pytest.raises(CaptureError, match="still no tensor"):
        capture(build("modules"), normalize_inputs(X), SHAPES)
    assert exports == ["part"] * 2  # with free image sizes, and without


class Decides(nn.Module):
    """Has data-dependent control flow, which no graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x if x.mean() > 0 else -x)


def test_what_cannot_be_exported_either_names_the_line() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Net(Decides()).double().eval(), normalize_inputs(X))
    assert f"{__file__}:" in caught.value.where
    assert "x.mean() > 0" in str(caught.value)


def test_a_submodule_that_decides_by_values_keeps_its_python() -> None:
    model = Net(Decides()).double().eval()
    gated = fxprune.auto_gate(model, X)
    assert isinstance(gated, GatedRegions)
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, X)
    frozen = {str(axis.member): axis.reason for axis in gated.frozen}
    assert "Python code" in frozen["a.weight[0]"]
    assert {group.name for group in gated.groups} == {"hard.body.0", "hard.body.2"}
    assert "Python code" in str(fxprune.explain(model, X))


@torch.library.custom_op("fxprune_tests::mixed", mutates_args=())
def mixed(x: Tensor) -> Tensor:
    return x.flip(1).cumsum(1)


@mixed.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class CallsCustom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return mixed(x)


@pytest.mark.parametrize("resists", [False, True])
def test_a_custom_operator_is_one_call_with_named_frozen_borders(resists: bool) -> None:
    class Custom(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if resists:
                require_tensor(x)
            return super().forward(x)

    part = Custom(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1), CallsCustom())
    model = Net(part).double().eval()
    gated = fxprune.auto_gate(model, X)
    assert gated.settings.captured == (SHAPES if resists else "symbolic tracing")
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, X)
    frozen = {str(axis.member): axis.reason for axis in gated.frozen}
    assert "mixed" in frozen["hard.2.weight[0]"]
    assert "b.weight[1]" in frozen
    assert {"a", "hard.0"} <= {group.name for group in gated.groups}
    assert "mixed" in str(fxprune.explain(model, X))
