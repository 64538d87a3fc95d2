"""What capture with known shapes takes, what it refuses, and who captures that instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from gate_checks import assert_close, assert_equal_to_compact, random_keep, run
from torch import Tensor, nn

import fxprune
from fxprune.capture.by_shapes import trace_by_shapes
from fxprune.errors import CaptureError, LoadError
from fxprune.gated import GatedModule

SHAPES, EXPORT = "tracing with shapes", "torch.export"


def inputs(*shape: int) -> Tensor:
    return torch.rand(shape or (2, 3, 8, 8), dtype=torch.float64)


class Net(nn.Module):
    """Two convolutions; what happens between them is up to the subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 4:
            raise ValueError("odd sizes")
        return self.b(self.between(self.a(x)))

    def between(self, y: Tensor) -> Tensor:
        return y


class Cut(Net):
    def between(self, y: Tensor) -> Tensor:
        return y[..., :6]


class Limited(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * 2 if min(y.shape[2:]) < 20 else y


class AsksForLength(Net):
    def between(self, y: Tensor) -> Tensor:
        token = y.mean(dim=(0, 2, 3), keepdim=True) if len(y.shape) == 3 else y[:1, :, :1, :1] * 0
        return y + token.expand(len(y), -1, -1, -1)


class ManyConstants(Net):
    def between(self, y: Tensor) -> Tensor:
        for _ in range(3):
            y = y * torch.linspace(0.5, 1.5, 4, dtype=torch.float64).sum()
        return y


class Quiet(Net):
    def between(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            scale = y.mean((2, 3), keepdim=True).sigmoid()
        return y * scale


class Uncast(Net):
    def between(self, y: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.relu(y) * 2


class Cast(Net):
    def between(self, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.b.bias.sum() + F.relu(y)


class AsksForType(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * 2 if isinstance(y, Tensor) else y * 3


class AsksForIdentity(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * 2 if y.contiguous() is y else y * 3


class WritesConstant(Net):
    def between(self, y: Tensor) -> Tensor:
        total = torch.zeros(1, 8, 1, 1, dtype=torch.float64)
        total += y.mean((0, 2, 3), keepdim=True)
        return y * total


class Draws(Net):
    def between(self, y: Tensor) -> Tensor:
        return y * torch.rand(8, 1, 1, dtype=torch.float64) if y.shape[2] > 2 else y


class Raft(nn.Module):
    """torchvision's RAFT with two of its updates."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.optical_flow.raft_small()

    def forward(self, one: Tensor, two: Tensor) -> list[Tensor]:
        flows: list[Tensor] = self.net(one, two, num_flow_updates=2)
        return flows


class Keeps(Net):
    """Makes a table at its first call, and anew for another size."""

    table: Tensor | None = None

    def between(self, y: Tensor) -> Tensor:
        if self.table is None or self.table.shape[-1] != y.shape[-1]:
            self.table = torch.arange(y.shape[-1], device=y.device) / 7
        return y * self.table


class Collects(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def between(self, y: Tensor) -> Tensor:
        self.seen.append(y)
        return y + self.seen[0].mean() * 0


class NormAct(nn.BatchNorm2d):
    """A norm with its activation: tracing makes it a plain norm, and the model is another then."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(
            F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training
            )
        )


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = NormAct(8)

    def between(self, y: Tensor) -> Tensor:
        return self.norm(y)


class Defaults(Net):
    def forward(self, x: Tensor, times: int = 2, mask: Tensor | None = None) -> Tensor:
        y = self.a(x)
        for _ in range(times if x.shape[2] > 2 else 0):
            y = F.relu(y)
        return self.b(y if mask is None else y * mask)


def captured(kind: type[nn.Module], example: Any = None) -> tuple[nn.Module, GatedModule]:
    model = kind().double().eval()
    return model, fxprune.auto_gate(model, inputs() if example is None else example)


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (Net, SHAPES),
        (Cut, SHAPES),
        (AsksForLength, SHAPES),
        (Limited, SHAPES),
        (ManyConstants, SHAPES),
        (Quiet, SHAPES),
        (Uncast, SHAPES),
        (Normed, SHAPES),
        (Keeps, SHAPES),
        (AsksForType, SHAPES),
        (AsksForIdentity, EXPORT),
        (WritesConstant, EXPORT),
        (Draws, EXPORT),
    ],
)
def test_the_graph_computes_what_the_model_does(kind: type[nn.Module], way: str) -> None:
    model, gated = captured(kind)
    assert gated.settings.captured == way
    for batch in (1, 2, 3):
        x = inputs(batch, 3, 8, 8)
        for _ in range(2):  # nothing is left behind by a run
            torch.manual_seed(0)
            expected = run(model, x)
            torch.manual_seed(0)
            assert_close(run(gated, x), expected)
    if kind is not Draws:
        gated.set_keep(random_keep(gated, 0.5))
        assert_equal_to_compact(gated, inputs())


def test_optical_flow_with_its_correlation_pyramid() -> None:
    model = Raft().eval()
    example = (torch.rand(2, 3, 128, 128), torch.rand(2, 3, 128, 128))
    gated = fxprune.auto_gate(model, example)
    assert gated.settings.captured == SHAPES
    assert list(gated._mode_graphs) == ["eval"]
    pair = (torch.rand(1, 3, 128, 136), torch.rand(1, 3, 128, 136))
    with torch.no_grad():
        for flow, expected in zip(gated(*pair), model(*pair), strict=True):
            torch.testing.assert_close(flow, expected)
        gated.set_keep(random_keep(gated, 0.5))
        for flow, expected in zip(gated.compact()(*pair), gated(*pair), strict=True):
            torch.testing.assert_close(flow, expected, rtol=1e-4, atol=1e-4)
    assert fxprune.explain(gated).prunable_params > 0.99


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        (Net, (12, 9), (6, 8), r"with x.size\(2\) % 4 == 0"),
        (Normed, (12, 9), (6, 8), r"with x.size\(2\) % 4 == 0"),
        (Cut, (12, 9), (8, 4), r"with x.size\(3\) >= 8"),
        (Limited, (12, 12), (32, 32), r"< 20 == True"),
    ],
)
def test_sizes_stay_free_within_what_the_forward_took_for_granted(
    kind: type[nn.Module], good: tuple[int, int], bad: tuple[int, int], message: str
) -> None:
    model, gated = captured(kind)
    x = inputs(2, 3, *good)
    assert_close(run(gated, x), run(model, x))
    with pytest.raises(AssertionError, match=message):
        gated(inputs(2, 3, *bad))


def test_sizes_that_a_loop_needs_are_those_of_the_example() -> None:
    class Rows(Net):
        def between(self, y: Tensor) -> Tensor:
            return torch.stack([y[:, :, i] * i for i in range(y.shape[2])], 2)

    model, gated = captured(Rows)
    assert gated.settings.captured == SHAPES
    assert_close(run(gated, x := inputs(5, 3, 8, 8)), run(model, x))
    with pytest.raises(AssertionError, match=r"x.size\(2\) == 8"):
        gated(inputs(2, 3, 12, 8))


def test_equal_constants_are_one() -> None:
    _, gated = captured(ManyConstants)
    assert sum(name.startswith("_tensor_constant") for name, _ in gated.named_buffers()) == 1


def test_no_gradient_leaves_a_region_without() -> None:
    model, gated = captured(Quiet)
    x = inputs()
    model(x).square().sum().backward()
    gated(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_close([gated.get_parameter(name).grad], [parameter.grad], name)


def test_values_kept_from_one_call_to_the_next_are_refused() -> None:
    with pytest.raises(CaptureError, match="from one call to the next"):
        trace_by_shapes(Collects().double().eval(), ((inputs(),), {}))


def test_a_region_under_autocast_is_refused() -> None:
    with pytest.raises(CaptureError, match="switches autocast on"):
        trace_by_shapes(Cast().double().eval(), ((inputs(),), {}))
    with pytest.raises(CaptureError, match="cannot be captured") as caught:
        captured(Cast)
    assert caught.value.seen.count("autocast on") == 2


def test_arguments_left_out_keep_their_defaults() -> None:
    model, gated = captured(Defaults)
    x = inputs()
    assert_close(run(lambda v: gated(v, times=2), x), run(model, x))
    with pytest.raises(AssertionError, match="captured with times=2"):
        gated(x, 3)
    with pytest.raises(AssertionError, match="captured with mask=None"):
        gated(x, mask=x)


def test_the_next_way_is_tried_where_the_analysis_fails() -> None:
    class Either(nn.Module):
        """Takes images or a function: a traced value can be called, and is taken for one."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Any) -> Tensor:
            y = self.a(x()[0] if callable(x) else x)
            return self.fc(y.mean((2, 3)))

    model, gated = captured(Either)
    assert gated.settings.captured == EXPORT
    assert_close(run(gated, x := inputs()), run(model, x))


def test_a_file_is_loaded_as_it_was_captured(tmp_path: Any, monkeypatch: Any) -> None:
    path = tmp_path / "m.pt"
    _, gated = captured(Net)
    gated.set_keep(random_keep(gated, 0.5))
    fxprune.save(gated.compact(), path)
    fresh = Net().double().eval()
    x = inputs()
    assert_close(run(fxprune.load(path, fresh), x), run(gated, x))
    monkeypatch.setattr(Net, "between", AsksForIdentity.between)
    with pytest.raises(LoadError, match="does not fit .* by tracing with shapes"):
        fxprune.load(path, fresh)


@pytest.mark.parametrize("way", [SHAPES, EXPORT])
def test_it_goes_to_onnx_with_any_batch(way: str, tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    kind = Net if way == SHAPES else AsksForIdentity
    model = kind().eval()
    gated = fxprune.auto_gate(model, inputs().float())
    assert gated.settings.captured == way
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    path = tmp_path / "m.onnx"
    fxprune.export_onnx(compact, path, inputs().float(), dynamic_batch=True)
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 5):
        x = inputs(batch, 3, 8, 8).float()
        (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(out), compact(x), rtol=1e-4, atol=1e-5)
    fxprune.save(compact, tmp_path / "m.pt")
    loaded = fxprune.load(tmp_path / "m.pt", kind().eval())
    assert torch.equal(loaded(x), compact(x))
