"""Models that symbolic tracing cannot follow: captured with known shapes, or by torch.export."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close, assert_equal_to_compact, no_dropout, random_keep, run
from torch import Tensor, nn

import fxprune
from fxprune import capture
from fxprune.errors import CaptureError
from fxprune.gated import GatedModule
from fxprune.inputs import flatten_outputs

Pair = namedtuple("Pair", "a b")

SYMBOLIC, SHAPES, EXPORT = "symbolic tracing", "tracing with shapes", "torch.export"


@pytest.fixture(autouse=True, params=[SHAPES, EXPORT])
def way(request: Any, monkeypatch: Any) -> str:
    """Leave one way beside symbolic tracing."""
    kept = {name: capture._WAYS[name] for name in (SYMBOLIC, request.param)}
    monkeypatch.setattr(capture, "_WAYS", kept)
    return str(request.param)


@dataclass
class Found:
    logits: Tensor
    more: dict[str, Tensor] | None = None


def conv(i: int, o: int, k: int = 3) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2)


class Padded(nn.Module):
    """Pads to a multiple of 4, with every kind of layer whose mode matters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop, self.b = (
            conv(3, 8),
            nn.BatchNorm2d(8),
            nn.Dropout(0.3),
            conv(8, 12),
        )
        self.ln, self.fc = nn.LayerNorm(12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        rest = -x.shape[-1] % 4
        if rest:
            x = F.pad(x, (0, rest))
        y = self.drop(F.relu(self.norm(self.a(x)), inplace=True))
        y = self.b(y).flatten(2).transpose(1, 2)
        return self.fc(self.ln(y).mean(1))


class RandomDepth(nn.Module):
    """Skips a branch at random in training, and scales it by a constant made on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 8), conv(8, 8), conv(8, 4)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.a(x))
        if y.shape[2] > 4:
            y = y * torch.tensor([0.5], dtype=y.dtype, device=y.device)
        z = self.b(y)
        if self.training:
            z = z * torch.empty(z.shape[0], 1, 1, 1, dtype=z.dtype, device=z.device).bernoulli_(0.5)
        return F.dropout(self.out(y + z), 0.1, self.training)


class Several(nn.Module):
    """Nested inputs, and outputs of every kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 8), conv(3, 8), conv(8, 4)

    def forward(
        self, x: Tensor, more: dict[str, Any], times: int = 1, *, mask: Tensor | None = None
    ) -> Any:
        y = self.a(x) + self.b(more["y"][0])
        for _ in range(times if y.shape[1] == 8 else 0):
            y = F.relu(y)
        if mask is not None:
            y = y * mask
        z = self.out(y)
        return OrderedDict(found=Found(z, {"twice": 2 * z}), pair=Pair(z.mean((2, 3)), [z, None]))


def inputs(*shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, 8, 8), dtype=torch.float64)


def gated_of(model: nn.Module, example: Any = None) -> GatedModule:
    return fxprune.auto_gate(model.double(), example)


@pytest.mark.parametrize("kind", [Padded, RandomDepth])
@pytest.mark.parametrize("training", [False, True])
def test_both_modes_compute_what_the_original_computes(
    kind: type[nn.Module], training: bool
) -> None:
    model = kind().train(training)
    gated = gated_of(model, inputs())
    assert gated.training is training
    for mode in (training, not training, training):
        model.train(mode)
        gated.train(mode)
        for batch in (1, 2, 5):
            x = inputs(batch, 3, 8, 8)
            assert_close(run(gated, x), run(model, x), f"training={mode}, batch {batch}")
    assert set(gated.state_dict()) - set(model.state_dict()) == {"fxprune_gates.value"}
    for name, tensor in model.state_dict().items():  # running statistics and the number of batches
        assert_close([gated.state_dict()[name]], [tensor], name)


@pytest.mark.parametrize("kind", [Padded, RandomDepth])
def test_gated_is_compact_in_both_modes(kind: type[nn.Module]) -> None:
    gated = gated_of(kind().eval(), inputs())
    assert gated.groups
    for seed in range(3):
        gated.set_keep(random_keep(gated, 0.5, seed))
        compact = gated.eval().compact()
        for batch in (1, 4):
            x = inputs(batch, 3, 8, 8)
            assert_close(run(compact, x), run(gated, x), "eval")
        no_dropout(gated)
        compact = gated.train().compact()
        assert not any(type(m).__module__.startswith("fxprune") for m in compact.modules())
        x = inputs()
        assert_close(run(copy.deepcopy(gated), x), run(compact, x), "train")


def test_modules_keep_their_names_and_one_graph_serves_both_modes() -> None:
    model = Padded().eval()
    gated = gated_of(model, inputs())
    compact = gated.compact()
    assert list(gated._mode_graphs) == ["eval"]
    assert list(compact.state_dict()) == list(model.state_dict())
    assert isinstance(compact.get_submodule("norm"), nn.BatchNorm2d)
    assert "torch.ops" not in compact.code


def test_image_size_stays_free_within_what_the_forward_took_for_granted() -> None:
    model = Padded().double().eval()
    gated = gated_of(model, inputs())
    for size in ((12, 8), (5, 16)):
        x = inputs(2, 3, *size)
        assert_close(run(gated, x), run(model, x), str(size))
    with pytest.raises(AssertionError, match="captured for inputs with .*% 4"):
        gated(inputs(2, 3, 8, 7))


def test_nested_inputs_and_outputs() -> None:
    model = Several().double().eval()
    example = {"x": inputs(), "more": {"y": [inputs()]}, "times": 2, "mask": inputs(2, 1, 8, 8)}
    gated = gated_of(model, example)
    for gates in (None, random_keep(gated, 0.5)):
        if gates is not None:
            gated.set_keep(gates)
        out, expected = gated(**example), model(**example)
        assert [type(out), *map(type, out.values())] == [OrderedDict, Found, Pair]
        assert out["pair"].b[1] is None
        assert [t.shape for t in leaves(out)] == [t.shape for t in leaves(expected)]
        if gates is None:
            assert_close(leaves(out), leaves(expected))
        assert_close(leaves(gated.compact()(**example)), leaves(out))
    with pytest.raises(AssertionError, match="captured with times=2"):
        gated(**{**example, "times": 3})


def leaves(value: Any) -> list[Tensor]:
    return [t for _, t in flatten_outputs(value)]


def test_survives_pickle_copy_save_and_load(tmp_path: Any) -> None:
    model = RandomDepth().double().eval()
    gated = gated_of(model, inputs())
    gated.set_keep(random_keep(gated, 0.5))
    x = inputs()
    expected = run(gated, x)
    for twin in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        assert_close(run(twin, x), expected)
        assert_close(run(twin.compact(), x), expected)
    fxprune.save(gated.compact(), tmp_path / "m.pt")
    fresh = RandomDepth().double().eval()
    assert_close(run(fxprune.load(tmp_path / "m.pt", fresh), x), expected)


def test_example_inputs_are_guessed() -> None:
    gated = gated_of(Padded().eval())
    assert gated.cost().macs > 0


class FixesItsBatch(Padded):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * torch.ones(len(y), 1, dtype=y.dtype) if self.training else y


@pytest.mark.parametrize("way", [EXPORT], indirect=True)
def test_a_mode_that_cannot_be_captured_refuses_to_run() -> None:
    model = FixesItsBatch().double().eval()
    gated = gated_of(model, inputs())
    x = inputs()
    assert_close(run(gated, x), run(model, x))
    assert_close(run(gated.compact(), x), run(gated, x))
    with pytest.raises(AssertionError, match="in training mode, FixesItsBatch cannot be captured"):
        gated.train()(x)
    with pytest.raises(AssertionError, match="in training mode"):
        gated.compact()(x)


@pytest.mark.parametrize("way", [EXPORT], indirect=True)
@pytest.mark.parametrize("decomposed", [False, True])
def test_an_exported_program_is_accepted(decomposed: bool) -> None:
    model = Padded().double().eval()
    x = inputs()
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    if decomposed:
        program = program.run_decompositions()
    gated = fxprune.auto_gate(program)
    assert gated.groups
    assert set(gated.state_dict()) - {"fxprune_gates.value"} <= set(model.state_dict())
    assert_close(run(gated, x), run(model, x))
    gated.set_keep(random_keep(gated, 0.5))
    compact = assert_equal_to_compact(gated, x)
    assert_close(run(compact, x[:1]), run(gated, x[:1]))
    assert_close(run(pickle.loads(pickle.dumps(gated)), x), run(gated, x))


@pytest.mark.parametrize("way", [EXPORT], indirect=True)
def test_an_exported_program_with_nested_inputs() -> None:
    model = Nested().double().eval()
    x = {"a": inputs(), "b": (inputs(), 1)}
    gated = fxprune.auto_gate(torch.export.export(model, (x,), {"scale": inputs(2, 1, 1, 1)}))
    other = {"a": inputs(), "b": (inputs(), 1)}
    scale = inputs(2, 1, 1, 1)
    assert_close(
        run(lambda v: gated(v, scale=scale), other), run(lambda v: model(v, scale=scale), other)
    )


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = conv(3, 8), conv(8, 4)

    def forward(self, x: dict[str, Any], scale: Tensor) -> dict[str, Any]:
        y = self.out(F.relu(self.a(x["a"] + x["b"][0])))
        return {"y": y * scale, "more": [y.mean((2, 3))]}


@torch.library.custom_op("fxprune_test::reversed", mutates_args=())
def reversed_channels(x: Tensor) -> Tensor:
    return x.flip(1).clone()


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 8), conv(8, 6), conv(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.b(torch.ops.fxprune_test.reversed(self.a(x))))


def test_an_unknown_custom_operator_freezes_its_channels_by_name() -> None:
    model = Custom().double().eval()
    gated = gated_of(model, inputs())
    reasons = [f.reason for f in gated.frozen if f.member.fqn == "a.weight" and f.member.dim == 0]
    assert len(reasons) == 1
    assert "fxprune_test" in reasons[0]
    assert [g.name for g in gated.groups] == ["b"]
    x = inputs()
    assert_close(run(gated, x), run(model, x))
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, x)
    assert_close(run(pickle.loads(pickle.dumps(gated)), x), run(gated, x))


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0.5:
            x = x * 2
        return self.a(x)


def test_control_flow_on_values_gives_one_error_that_tells_what_was_tried(way: str) -> None:
    message = (
        r"DataDependent cannot be captured[\s\S]*test_export_capture.py:\d+ in forward: if x.mean"
    )
    with pytest.raises(CaptureError, match=message) as caught:
        gated_of(DataDependent(), inputs())
    assert "symbolic tracing: " in caught.value.seen
    assert f"{way}: " in caught.value.seen
    assert "torch.where" in caught.value.hint
