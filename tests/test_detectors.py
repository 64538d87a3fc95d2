"""Detectors of torchvision: gated, cut, compared at every border, trained, saved."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detector_models import DETECTORS, images, targets, tiny_detector
from gate_checks import assert_close, assert_partition, no_dropout, random_keep, run
from region_models import awake
from torch import Tensor, nn

import fxprune
from fxprune.errors import ExportError, InputError, VerificationError
from fxprune.gated_regions import GatedRegions
from fxprune.handovers import region_paths
from fxprune.onnx_trace import TracedExportWarning
from fxprune.runtime import OnnxModel

IMAGES = images((64, 64), (50, 80))


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture(scope="module")
def original() -> nn.Module:
    model: nn.Module = awake(tiny_detector())
    return model


@pytest.fixture(scope="module")
def found(original: nn.Module) -> GatedRegions:
    made = fxprune.auto_gate(original)
    assert isinstance(made, GatedRegions)
    return made


@pytest.fixture
def gated(found: GatedRegions) -> GatedRegions:
    return copy.deepcopy(found)


def both_modes_agree(a: nn.Module, b: nn.Module, given: list[Any], single: bool = False) -> None:
    """Compare two forms of a detector, in evaluation and in training with targets.

    Those that take targets in single precision only are trained so, and put back to double.
    """
    fxprune.verify(a.eval(), b.eval(), (given,), rtol=1e-9)
    for model in (a, b):
        model.train().float() if single else model.train()
    fxprune.verify(a, b, (given, targets(given)), rtol=None if single else 1e-9)
    for model in (a, b):
        model.eval().double()


def test_a_small_detector_is_gated_and_cut(original: nn.Module, gated: GatedRegions) -> None:
    assert_partition(gated)
    assert {"backbone", "roi_heads.box_head"} <= set(gated.regions)
    assert fxprune.explain(gated).prunable_params > 0.95
    both_modes_agree(original, gated, IMAGES)
    for seed in range(3):
        gated.set_keep(random_keep(gated, 0.6, seed))
        compact = gated.compact()
        both_modes_agree(gated, compact, IMAGES)
        assert gated.cost().params == sum(p.numel() for p in compact.parameters())
    found = run(compact, IMAGES)
    assert sum(tensor.numel() for tensor in found), "boxes are returned"
    assert_close(run(gated, IMAGES), found, "the same boxes, in the same order")


@pytest.mark.parametrize("path", ["backbone", "rpn.head.cls_logits", "roi_heads.box_head"])
def test_a_wrong_weight_is_found_where_it_is(gated: GatedRegions, path: str) -> None:
    gated.set_keep(random_keep(gated, 0.6))
    compact = gated.compact()
    with torch.no_grad():
        next(compact.get_submodule(path).parameters()).add_(1e-3)
    with pytest.raises(VerificationError, match=rf"{path}\(call 0\)"):
        fxprune.verify(gated, compact, (IMAGES,))


def test_it_trains_is_saved_and_loaded(gated: GatedRegions, tmp_path: Path) -> None:
    gated.float()
    gated.set_keep(random_keep(gated, 0.6))
    compact = gated.compact().train()
    given = images((64, 64), (50, 80), dtype=torch.float32)
    for model in (gated.train(), compact):
        before = {name: p.clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sum(model(given, targets(given)).values()).backward()
        optimizer.step()
        assert all(p.grad is not None for p in model.parameters())
        moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
        assert {"backbone.0.0.weight", "roi_heads.box_predictor.cls_score.bias"} <= set(moved)
    fxprune.save(compact.eval(), tmp_path / "m.pt")
    again = fxprune.load(tmp_path / "m.pt", tiny_detector().eval())
    assert region_paths(again) == gated.regions
    for a, b in zip(run(again, given), run(compact, given), strict=True):
        assert torch.equal(a, b)


def test_other_sizes_and_empty_targets(gated: GatedRegions) -> None:
    gated.set_keep(random_keep(gated, 0.6))
    compact = gated.compact()
    given = images((40, 120), (130, 30), (64, 64))
    fxprune.verify(gated, compact, (given,), rtol=1e-9)
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()} for _ in given]
    fxprune.verify(gated.train(), compact.train(), (given, nothing), rtol=1e-9)
    for model in (gated, compact):
        with pytest.raises(AssertionError, match="targets should not be none when in training"):
            model(given)


def test_a_list_that_is_one_argument_is_explained(original: nn.Module) -> None:
    with pytest.raises(InputError, match=r"3d tensors[\s\S]*\(\[image\],\)"):
        fxprune.auto_gate(original, [IMAGES[0]])


# -- ONNX
def test_it_is_written_as_onnx_dense_and_compact(gated: GatedRegions, tmp_path: Path) -> None:
    gated.float().set_keep(random_keep(gated, 0.6))
    given = images((64, 64), dtype=torch.float32)
    for model in (gated.compact(), tiny_detector().eval()):
        with pytest.warns(TracedExportWarning, match="FasterRCNN follows one run"):
            done = fxprune.export_onnx(
                model,
                tmp_path / "m.onnx",
                (given,),
                dynamic_batch=False,
                traced=None if region_paths(model) else True,
            )
        assert done.traced
        assert done.max_rel_error < 1e-4
        written = OnnxModel(tmp_path / "m.onnx", threads=1)
        assert written.input_names == ("images_0",)
        other = torch.rand(3, 64, 64)
        expected = run(model, [other])
        actual = written.run(written.feed((other,)))
        assert [a.shape for a in actual] == [tuple(e.shape) for e in expected]
        torch.testing.assert_close(torch.from_numpy(actual[0]), expected[0], rtol=0, atol=1e-3)


class _Decides(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y if x[0, 0] > 0 else -y


def test_a_decision_that_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    values = torch.tensor([[5.0, -1.0, -2.0, -3.0]])
    with pytest.raises(ExportError, match="does not compute what torch computes"):
        fxprune.export_onnx(_Decides(), tmp_path / "m.onnx", values, traced=True)
    assert not list(tmp_path.iterdir())


# -- all of torchvision's
def test_every_detector_of_torchvision_is_listed() -> None:
    from torchvision import models

    assert set(DETECTORS) == set(models.list_models(module=models.detection))


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detector(name: str) -> None:
    from torchvision.models import get_model

    torch.manual_seed(0)
    model = get_model(name, weights=None, weights_backbone=None, **DETECTORS[name])
    awake(model)
    no_dropout(model)
    gated = fxprune.auto_gate(model)
    assert_partition(gated)
    assert fxprune.explain(gated).prunable_params >= 0.85
    given = images((70, 90), (64, 100))
    single = name.startswith("keypoint")
    both_modes_agree(model, gated, given, single)
    del model
    for seed in range(2):
        gated.set_keep(random_keep(gated, 0.6, seed))
        compact = gated.compact()
        assert gated.cost().params == sum(p.numel() for p in compact.parameters())
        both_modes_agree(gated, compact, given, single)
        del compact
