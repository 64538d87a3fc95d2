"""Inputs and outputs of every form, modules called twice, tied weights: open gates change nothing, compact equals gated."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from gate_checks import (
    assert_close,
    assert_cost,
    assert_partition,
    assert_state_is_sliced,
    random_keep,
)
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork

from fxprune import auto_gate, explain
from fxprune.errors import ConfigError
from fxprune.inputs import flatten_outputs


@dataclass
class Batch:
    x: Tensor
    scale: Tensor


@dataclass
class Scores:
    y: Tensor
    features: Tensor | None = None


class Both(NamedTuple):
    y: Tensor
    features: Tensor


class Layers(nn.Module):
    """Three convolutions to build forwards of."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 3, 1)

    def inner(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(self.a(x)))


class DataclassIn(Layers):
    def forward(self, batch: Batch) -> Tensor:
        return self.c(self.inner(batch.x)) * batch.scale


class DataclassOut(Layers):
    def forward(self, x: Tensor) -> Scores:
        features = self.a(x)
        return Scores(self.c(self.b(features)), features)


class DataclassWithNone(Layers):
    def forward(self, x: Tensor) -> Scores:
        return Scores(self.c(self.inner(x)))


class DataclassInBoth(Layers):
    def forward(self, batch: Batch) -> Scores:
        return Scores(self.c(self.inner(batch.x)), batch.scale)


class DataclassInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = DataclassOut(), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.body(x)
        return scores.y + self.head(scores.features)


class NamedTupleOut(Layers):
    def forward(self, x: Tensor) -> Both:
        features = self.a(x)
        return Both(self.c(self.b(features)), features)


class DictInAndOut(Layers):
    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        return OrderedDict((name, self.c(self.inner(x))) for name, x in maps.items())


class ListIn(Layers):
    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [self.c(self.inner(x)) for x in maps]


class SeveralInputs(Layers):
    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: Any = None) -> Tensor:
        features = self.a(x) if y is None else self.a(x) + self.a(y)
        return self.c(self.b(features if scale is None else features * scale))


class Pyramid(nn.Module):
    """A getter of intermediate layers and a feature pyramid: dicts of maps in and out."""

    def __init__(self) -> None:
        super().__init__()
        names = ("one", 3, 8), ("two", 8, 12), ("three", 12, 16)
        body = nn.Sequential(OrderedDict((n, nn.Conv2d(i, o, 3, 2, 1)) for n, i, o in names))
        self.body = IntermediateLayerGetter(body, {"two": "fine", "three": "coarse"})
        self.pyramid, self.head = FeaturePyramidNetwork([12, 16], 8), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: self.head(y) for name, y in self.pyramid(self.body(x)).items()}


class SharedHead(nn.Module):
    """One head for maps of two sizes, and a linear layer for tensors of two and three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.head = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.out, self.last = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = self.head(self.a(x)), self.head(F.avg_pool2d(self.b(x), 2))
        return self.last(self.out(one.mean((2, 3)))), self.last(self.out(other.flatten(2).mT))


class Repeated(nn.Module):
    """A layer in a loop: what goes in is what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.loop, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        for _ in range(3):
            x = torch.relu(self.loop(x))
        return self.out(x)


class TiedHead(nn.Module):
    """A table of embeddings that is the output layer, too, as a module's weight or in a function."""

    def __init__(self, by_function: bool) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight
        self.by_function = by_function

    def forward(self, at: Tensor) -> Tensor:
        y = self.norm(torch.relu(self.inner(self.table(at))) + self.table(at))
        return F.linear(y, self.table.weight) if self.by_function else self.head(y)


class TiedLayers(nn.Module):
    """Two convolutions with one weight, and a decoder that is the encoder turned round."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.narrow = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.narrow(self.c(torch.relu(self.b(self.a(x)))))
        y = F.conv_transpose2d(torch.relu(y), self.narrow.weight)
        return F.conv_transpose2d(y, self.a.weight)


def image(size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=generator)


SCALE = torch.full((2, 1, 1, 1), 0.7, dtype=torch.float64)
WORDS = torch.tensor([[0, 1, 2], [3, 4, 4]])

CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], float]] = {
    # a model, its arguments by position and by name, the least share of parameters prunable
    "dataclass in": (DataclassIn, (Batch(image(), SCALE),), {}, 0.9),
    "dataclass out": (DataclassOut, (image(),), {}, 0.5),
    "dataclass out, None in it": (DataclassWithNone, (image(),), {}, 0.9),
    "dataclass in and out": (DataclassInBoth, (Batch(image(), SCALE),), {}, 0.9),
    "dataclass inside": (DataclassInside, (image(),), {}, 0.9),
    "named tuple out": (NamedTupleOut, (image(),), {}, 0.5),
    "dict in and out": (DictInAndOut, ({"x": image(), "y": image(4)},), {}, 0.9),
    "list in": (ListIn, ([image(), image(4)],), {}, 0.9),
    "one of several inputs": (SeveralInputs, (image(),), {}, 0.9),
    "two inputs": (SeveralInputs, (image(), image(seed=1)), {}, 0.9),
    "inputs by name": (SeveralInputs, (), {"x": image(), "scale": SCALE}, 0.9),
    "dicts of features": (Pyramid, (image(16),), {}, 0.9),
    "a head for two sizes": (SharedHead, (image(),), {}, 0.9),
    "a layer in a loop": (Repeated, (image().flatten(1)[:, :6],), {}, 0.9),
    "tied head": (lambda: TiedHead(False), (WORDS,), {}, 0.9),
    "tied head in a function": (lambda: TiedHead(True), (WORDS,), {}, 0.9),
    "tied layers": (TiedLayers, (image(),), {}, 0.9),
}


def outputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [tensor for _, tensor in flatten_outputs(model(*args, **kwargs))]


@pytest.mark.parametrize("name", CASES)
def test_gated_is_compact(name: str) -> None:
    torch.manual_seed(0)
    make, args, kwargs, least = CASES[name]
    model = make().double().eval()
    gated = auto_gate(model, kwargs or args)
    assert_partition(gated)
    assert explain(gated).prunable_params >= least
    expected = model(*args, **kwargs)
    assert type(gated(*args, **kwargs)) is type(expected)
    for training in (False, True):
        one, other = copy.deepcopy(gated).train(training), copy.deepcopy(model).train(training)
        assert_close(outputs(one, args, kwargs), outputs(other, args, kwargs), "open gates")
    for seed in range(2):
        gated.set_keep(random_keep(gated, 0.5, seed))
        compact = gated.compact()
        assert type(compact(*args, **kwargs)) is type(expected)
        assert_close(outputs(compact, args, kwargs), outputs(gated, args, kwargs), "compact")
        assert_state_is_sliced(gated, compact)
        if not kwargs and isinstance(args[0], Tensor) and name != "tied head in a function":
            assert_cost(gated, compact, *args)


def test_tied_weights_stay_one_tensor() -> None:
    gated = auto_gate(TiedHead(False).double(), (WORDS,))
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    assert compact.head.weight is compact.table.weight
    assert compact.table.embedding_dim == compact.head.in_features < 8


@pytest.mark.parametrize("name", ["code", "graph", "groups", "keep"])
def test_a_part_with_a_name_that_is_taken(name: str) -> None:
    model = Layers()
    model.add_module(name, nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match=rf"where: {name}[\s\S]*rename self.{name}"):
        auto_gate(model, image().float())


def test_a_wrong_tie_is_found() -> None:
    """The comparison of this file sees one weight of the compact model that is off."""
    gated = auto_gate(TiedHead(False).double(), (WORDS,))
    compact = gated.compact()
    with torch.no_grad():
        compact.table.weight[0] += 1
    with pytest.raises(AssertionError, match="not close"):
        assert_close(outputs(compact, (WORDS,), {}), outputs(gated, (WORDS,), {}))
