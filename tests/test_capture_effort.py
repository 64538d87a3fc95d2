"""What capture does not try, and what it does not keep: ways that cannot work, copies that failed."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from gate_checks import assert_equal_to_compact, random_keep
from torch import Tensor, nn

import fxprune
from fxprune.capture import capture, is_final
from fxprune.capture.by_shapes import FixedBatchError
from fxprune.errors import CaptureError, FxpruneError
from fxprune.gated_regions import GatedRegions
from fxprune.inputs import normalize_inputs

IMAGES = torch.rand(4, 3, 8, 8, dtype=torch.float64)


class Looped(nn.Module):
    """Goes through the images of a batch one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.body(image[None]) for image in self.images(x)])

    def images(self, x: Any) -> Any:
        return x


class Listed(Looped):
    """Takes images one by one: their first axis is no batch."""

    def images(self, x: Any) -> Any:
        mean = torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64)
        return [image - mean[:, None, None] for image in x]


class LoopedInTraining(Looped):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else self.body(x)


class Segments(Looped):
    """Takes two frames of a film at a time, so only even batches."""

    def forward(self, x: Tensor) -> Tensor:
        frames = list(self.body(x).view(-1, 2, 4, 6, 6).unbind(1))
        return frames[0] + frames[1]


@pytest.mark.parametrize(("kind", "inputs"), [(Looped, IMAGES), (Listed, ([IMAGES[0]],))])
def test_a_model_of_one_batch_size_is_not_exported(
    kind: type[Looped], inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.export, "export", None)  # a call would be another error
    model = kind().double().eval()
    with pytest.raises(FixedBatchError, match="cannot be captured") as caught:
        capture(copy.deepcopy(model), normalize_inputs(inputs), "tracing with shapes")
    assert is_final(caught.value)
    assert f"{__file__}:" in caught.value.where
    gated = fxprune.auto_gate(model, inputs)
    assert isinstance(gated, GatedRegions)
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, inputs if isinstance(inputs, Tensor) else inputs[0])


def test_a_mode_that_cannot_be_traced_leaves_the_other_to_export() -> None:
    model = LoopedInTraining().double().eval()
    gated = fxprune.auto_gate(model, IMAGES)
    assert gated.settings.captured == "torch.export"


def test_batches_of_multiples_are_captured() -> None:
    model = Segments().double().eval()
    gated = fxprune.auto_gate(model, IMAGES)
    assert gated.settings.captured == "tracing with shapes"
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, torch.rand(6, 3, 8, 8, dtype=torch.float64))


def test_ways_that_failed_keep_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[Any] = []
    alive: list[int] = []
    duplicate = copy.deepcopy

    def counted(model: nn.Module) -> nn.Module:
        alive.append(sum(ref() is not None for ref in copies))
        made = duplicate(model)
        copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr("fxprune.api._copy", counted)
    fxprune.auto_gate(Listed().double().eval(), ([IMAGES[0]],))
    assert len(alive) > 1
    assert not any(alive)


def test_the_error_still_shows_where_it_came_from() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else x * self.weight

    with pytest.raises(FxpruneError) as caught:
        fxprune.auto_gate(Nothing(), torch.rand(2, 3))
    assert isinstance(caught.value, CaptureError)
    assert f"{__file__}:" in caught.value.where
    assert "x.sum() > 0" in str(caught.value)
