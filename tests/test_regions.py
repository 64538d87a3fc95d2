"""Models that keep their Python: their parts are gated, and what passes between them stays right."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import region_models as small
import torch
from gate_checks import (
    assert_close,
    assert_cost,
    assert_equal_to_compact,
    assert_partition,
    random_keep,
    run,
)
from torch import Tensor, nn

import fxprune
from fxprune.controllers import AutoTrainOnce
from fxprune.errors import CaptureError, InputError, LoadError, VerificationError
from fxprune.gated_regions import GatedRegions

X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IMAGES = [X[0], X[1, :, :6]]
CASES: dict[str, tuple[type[nn.Module], Any]] = {
    "branches": (small.Branches, X),
    "detector": (small.Detector, (IMAGES,)),
    "other path": (small.OtherPath, X.abs()),
    "reads a size": (small.ReadsSize, X),
    "reads a weight": (small.ReadsWeight, X),
    "writes in place": (small.WritesInPlace, X),
    "mode": (small.AuxInTraining, X),
    "attention": (small.Attends, X),
}


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    gc.collect()


def gate(name: str) -> tuple[nn.Module, GatedRegions, tuple[Any, ...]]:
    kind, example = CASES[name]
    torch.manual_seed(0)
    model = small.awake(kind())
    gated = fxprune.auto_gate(model, example)
    assert isinstance(gated, GatedRegions)
    return model, gated, example if isinstance(example, tuple) else (example,)


@pytest.mark.parametrize("name", CASES)
def test_gated_is_compact_for_any_mask(name: str) -> None:
    model, gated, inputs = gate(name)
    assert_partition(gated)
    assert [n for n, _ in gated.named_parameters()] == [n for n, _ in model.named_parameters()]
    for training in (False, True):
        model.train(training)
        gated.train(training)
        assert_close(run(copy.deepcopy(gated), *inputs), run(copy.deepcopy(model), *inputs), "open")
    for seed in range(3):
        gated.set_keep(random_keep(gated, 0.6, seed))
        gated.train()
        compact = gated.compact()
        assert_close(run(compact, *inputs), run(copy.deepcopy(gated), *inputs), "training")
        gated.eval()
        if name == "mode":
            assert_close(run(gated.compact(), *inputs), run(gated, *inputs), "evaluation")
            continue
        compact = assert_equal_to_compact(gated, *inputs)
        if name != "detector":
            assert_cost(gated, compact, *inputs)
        assert compact.training is False


def test_a_path_that_the_example_did_not_take_is_right_too() -> None:
    model, gated, _ = gate("other path")
    assert "first" in "".join(gated.keep), "the border is prunable: the example only hands it on"
    for x in (X.abs(), -X.abs()):
        assert_close(run(gated, x), run(model, x), "open")
    gated.set_keep(random_keep(gated, 0.5))
    for x in (X.abs(), -X.abs()):
        assert_equal_to_compact(gated, x)


def test_borders_are_told() -> None:
    _, gated, _ = gate("branches")
    told = {str(axis.member): axis.reason for axis in gated.frozen}
    assert told["backbone.0.0.weight[1]"] == (
        "it reads what the Python code around backbone hands it"
    )
    assert told["neck.1.weight[0]"].startswith("neck returns it, and the Python code around the")
    assert told["head.2.weight[0]"] == "head returns it, and it is an output of the model"
    assert not any(name.startswith("backbone.1.0.weight[0]") for name in told), (
        "handed on untouched"
    )


@pytest.mark.parametrize(
    ("name", "member", "reason"),
    [
        ("reads a size", "body.0.0.weight[0]", "the Python code around the regions uses it"),
        ("reads a weight", "body.0.0.weight[0]", "reads its 'weight'"),
        ("writes in place", "first.1.0.weight[0]", "changes it in place"),
    ],
)
def test_what_the_python_code_uses_is_frozen(name: str, member: str, reason: str) -> None:
    _, gated, _ = gate(name)
    told = {str(axis.member): axis.reason for axis in gated.frozen}
    assert reason in told[member]


def test_attention_inside_a_region_is_as_prunable_as_outside() -> None:
    model, gated, _ = gate("attention")
    alone = fxprune.auto_gate(model.get_submodule("body"), torch.zeros(2, 5, 3).double())
    kinds = {(g.name.removeprefix("body."), g.kind, g.size) for g in gated.groups}
    inside = {k for k in kinds if "layer" in k[0] or "pool" in k[0] or "embed" in k[0]}
    assert {k[1] for k in inside} >= {"head", "head_dim", "channel"}
    assert inside == {
        (g.name, g.kind, g.size)
        for g in alone.groups
        if "layer" in g.name or "pool" in g.name or "embed" in g.name
    }
    told = {str(axis.member): axis.reason for axis in gated.frozen}
    assert "_shares" in told["body.out.weight[0]"], "it makes a number of a size: it stays closed"
    for x in (X[:, :, :5], -X[:1, :, :, :3]):
        gated.set_keep(random_keep(gated, 0.6))
        assert_equal_to_compact(gated, x)


def test_heads_of_all_levels_are_one_region() -> None:
    model, gated, _ = gate("detector")
    assert set(gated.regions) == {"pyramid", "tower", "scores", "boxes"}
    names = {group.name for group in gated.groups}
    assert {"pyramid.lateral", "tower.0"} <= names
    dense = sum(p.numel() for p in model.parameters())
    assert gated.cost().params == dense
    assert fxprune.explain(gated).prunable_params > 0.99
    assert gated.threshold == -1.0, "attributes of the model are found"


def test_it_copies_pickles_moves_and_keeps_its_state() -> None:
    model, gated, inputs = gate("detector")
    gated.set_keep(random_keep(gated, 0.6))
    expected = run(gated, *inputs)
    for other in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        assert_close(run(other, *inputs), expected, "copy")
        other.set_keep({g.name: torch.ones(g.size, dtype=torch.bool) for g in other.groups})
        assert_close(run(other, *inputs), run(model, *inputs), "copy, open")
        assert_close(run(gated, *inputs), expected, "the original has gates of its own")
    fresh = fxprune.auto_gate(small.awake(small.Detector()), *(inputs,))
    fresh.load_state_dict(gated.state_dict())
    assert_close(run(fresh, *inputs), expected, "state")
    assert_close(run(gated.float().double(), *inputs), run(gated, *inputs), "moved")
    fxprune.verify(gated, gated.compact(), inputs)


def test_a_wrong_compact_model_is_found() -> None:
    _, gated, inputs = gate("detector")
    gated.set_keep(random_keep(gated, 0.6))
    compact = gated.compact()
    with torch.no_grad():
        compact.get_submodule("tower.0").weight[0] += 1e-3
    with pytest.raises(VerificationError):
        fxprune.verify(gated, compact, inputs)


def test_prune_save_and_load(tmp_path: Path) -> None:
    model = small.awake(small.Detector())
    compact = fxprune.prune(model, (IMAGES,), macs=0.5)
    assert compact.meta["fxprune"]["met"]
    fxprune.save(compact, tmp_path / "m.pt")
    again = fxprune.load(tmp_path / "m.pt", small.awake(small.Detector()))
    assert_close(run(again, IMAGES), run(compact, IMAGES), "loaded")
    assert not any(type(m).__module__.startswith("fxprune") for m in compact.modules())
    twice = fxprune.auto_gate(compact, (IMAGES,))
    assert_close(run(twice, IMAGES), run(compact, IMAGES), "gated once more")
    twice.set_keep(random_keep(twice, 0.7))
    assert_close(run(twice.compact(), IMAGES), run(twice, IMAGES), "cut once more")
    with pytest.raises(LoadError):
        fxprune.load(tmp_path / "m.pt", small.awake(small.Branches()))


@pytest.mark.filterwarnings("ignore::fxprune.prune.BudgetWarning")
def test_auto_train_once() -> None:
    torch.manual_seed(0)
    gated = fxprune.auto_gate(small.Branches().train(), X.float())
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.01)
    controller = AutoTrainOnce(gated, optimizer, steps=2, macs=0.5)

    def loss() -> Tensor:
        value: Tensor = gated(X.float())["scores"].square().mean()
        return value

    for _ in range(2):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        controller.step(loss)
    controller.finish()
    gated.eval()
    fxprune.verify(gated, gated.compact(), X.float())


def test_a_model_without_prunable_parts_keeps_its_error() -> None:
    with pytest.raises(CaptureError, match=r"NothingToCapture cannot be captured[\s\S]*y.sum\(\)"):
        fxprune.auto_gate(small.NothingToCapture(), torch.zeros(1, 3))


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"does not run[\s\S]*\(\[image\],\)"):
        fxprune.auto_gate(small.awake(small.Detector()), torch.zeros(2, 5, 8, 8))
