from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import ConfigError, InputError, VerificationError
from fxprune.tolerances import RTOL, relative_tolerance
from fxprune.verify import Verification, compare_outputs, full_float32, verify


class Gated(nn.Module):
    """conv, norm, activation, gate, conv: `compact_of` computes it with the channels cut out."""

    def __init__(self, keep: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, len(keep), 3, padding=1)
        self.norm = nn.BatchNorm2d(len(keep))
        self.head = nn.Conv2d(len(keep), 4, 3)
        self.register_buffer("gate", keep.float().view(1, -1, 1, 1))
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.get_buffer("gate")
        return self.head(torch.sigmoid(self.norm(self.conv(x))) * gate)


def compact_of(gated: Gated, keep: Tensor) -> nn.Sequential:
    n = int(keep.sum())
    small = nn.Sequential(
        nn.Conv2d(3, n, 3, padding=1), nn.BatchNorm2d(n), nn.Sigmoid(), nn.Conv2d(n, 4, 3)
    )
    state = {
        **{f"0.{k}": v[keep] for k, v in gated.conv.state_dict().items()},
        **{f"1.{k}": v[keep] if v.dim() else v for k, v in gated.norm.state_dict().items()},
        "3.weight": gated.head.weight[:, keep],
        "3.bias": gated.head.bias,
    }
    small.load_state_dict(state)
    return small


@pytest.fixture
def pair():
    torch.manual_seed(0)
    keep = torch.tensor([True, False, True, True, False, True, False, False, True, True])
    gated = Gated(keep).double()
    return gated.eval(), compact_of(gated, keep).double().eval()


IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Returns(nn.Module):
    """Returns what a function makes of its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor):
        return self.function(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_gated_equals_compact_in_every_dtype(pair, dtype):
    gated, compact = (model.to(dtype) for model in pair)
    found = verify(gated, compact, IMAGE)
    assert isinstance(found, Verification)
    assert found.passed
    assert 0 <= found.max_rel_error <= RTOL[dtype]
    assert found.max_abs_error < 1


def test_one_perturbed_weight_fails(pair):
    gated, compact = pair
    with torch.no_grad():
        compact[3].weight[0, 0, 0, 0] *= 1 + 1e-5
    with pytest.raises(VerificationError, match="do not compute the same output") as caught:
        verify(gated, compact, IMAGE)
    assert "output, worst at index [" in caught.value.where
    assert "(2, 4, 6, 6) float64: absolute error" in caught.value.seen
    assert "allowed 0.0e+00 + 1.0e-09 *" in caught.value.seen
    assert "eval mode and in float64" in caught.value.hint


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_channel_fails_in_every_dtype(pair, dtype):
    gated, compact = (model.to(dtype) for model in pair)
    with torch.no_grad():
        compact[3].weight[:, 0] = 0
    with pytest.raises(VerificationError, match="do not compute the same output"):
        verify(gated, compact, IMAGE)


def test_zeros_against_something_fail_both_ways():
    something, zeros = Returns(lambda x: x), Returns(torch.zeros_like)
    for first, second in ((something, zeros), (zeros, something)):
        with pytest.raises(VerificationError, match="do not compute the same output"):
            verify(first, second, IMAGE)
    with pytest.raises(VerificationError):
        verify(zeros, Returns(lambda x: x * 1e-30), IMAGE)
    assert verify(zeros, zeros, IMAGE) == Verification(0.0, 0.0, True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_never_passes(value):
    def broken(x: Tensor) -> Tensor:
        return x.masked_fill(x == x.max(), value)

    with pytest.raises(
        VerificationError, match="NaN or infinity[\\s\\S]*1 of 384 values in the ref"
    ):
        verify(Returns(broken), Returns(broken), IMAGE, rtol=1.0, atol=1e9)
    with pytest.raises(VerificationError, match="NaN or infinity[\\s\\S]*in the other model"):
        verify(Returns(lambda x: x), Returns(broken), IMAGE)


def test_every_output_is_compared():
    first = Returns(lambda x: {"a": x, "b": (x.sum(), x > 0)})
    assert verify(first, first, IMAGE).passed
    second = Returns(lambda x: {"b": (x.sum() * 1.01, x > 0), "a": x})
    with pytest.raises(VerificationError, match=r"where: output\['b'\]\[0\]"):
        verify(first, second, IMAGE)
    third = Returns(lambda x: {"a": x, "b": (x.sum(), x > 0.01)})
    with pytest.raises(VerificationError, match=r"where: output\['b'\]\[1\]"):
        verify(first, third, IMAGE)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda x: {"a": x}, r"different structures[\s\S]*output\['b'\]"),
        (lambda x: {"a": x, "b": x, "c": x}, r"different structures[\s\S]*output\['c'\]"),
        (lambda x: (x, x), r"different structures[\s\S]*output\[1\]"),
        (lambda x: {"a": x, "b": x[:1]}, r"shape or dtype[\s\S]*\(2, 3, 8, 8\).*\(1, 3, 8, 8\)"),
        (lambda x: {"a": x, "b": x.double()}, r"shape or dtype[\s\S]*float32.*float64"),
        (lambda x: {"a": x, "b": x.reshape(0)}, r"compact model does not run[\s\S]*RuntimeError"),
    ],
)
def test_structure_shape_and_dtype_must_match(second, message):
    with pytest.raises(VerificationError, match=message):
        verify(Returns(lambda x: {"a": x, "b": x}), Returns(second), IMAGE)


@pytest.mark.parametrize("nothing", [lambda x: None, lambda x: x[:0], lambda x: ()])
def test_nothing_to_compare_is_no_proof(nothing):
    with pytest.raises(VerificationError, match="no value that could be compared"):
        verify(Returns(nothing), Returns(nothing), IMAGE)


def test_tolerances_can_be_given():
    first, second = Returns(lambda x: x), Returns(lambda x: x * 1.01)
    with pytest.raises(VerificationError):
        verify(first, second, IMAGE, rtol=0.009)
    found = verify(first, second, IMAGE, rtol=0.011)
    assert found.passed
    assert found.max_rel_error == pytest.approx(0.01, rel=1e-3)
    assert found.max_abs_error == pytest.approx(0.01 * float(IMAGE.abs().max()), rel=1e-3)
    assert verify(first, second, IMAGE, rtol=0, atol=1.0).passed


@pytest.mark.parametrize("value", [-1e-3, float("nan"), float("inf"), "1e-3", True])
@pytest.mark.parametrize("name", ["rtol", "atol"])
def test_bad_tolerances_are_refused(name, value):
    model = nn.ReLU()
    with pytest.raises(ConfigError, match=f"'{name}' argument of verify must be None or a finite"):
        verify(model, model, IMAGE, **{name: value})


def test_arguments_must_be_modules():
    with pytest.raises(ConfigError, match="'compact' argument of verify must be a torch.nn.Module"):
        verify(nn.ReLU(), torch.relu, IMAGE)


def test_a_reference_that_does_not_run_is_an_input_error(pair):
    with pytest.raises(
        InputError, match=r"does not run on the example inputs[\s\S]*\(2, 5, 8, 8\)"
    ):
        verify(*pair, torch.zeros(2, 5, 8, 8))


def test_the_models_must_be_in_the_same_mode(pair):
    gated, compact = pair
    with pytest.raises(
        ConfigError, match=r"different modes[\s\S]*gated in train mode, compact in ev"
    ):
        verify(gated.train(), compact, IMAGE)


def test_a_leaf_in_another_mode_is_named():
    first = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Dropout(0.5))).eval()
    second = copy.deepcopy(first)
    second[1].training = True  # a container's own flag has no effect
    assert verify(first, second, torch.ones(2, 3)).passed
    second[1][0].train()
    with pytest.raises(ConfigError, match="module '1.0'"):
        verify(first, second, torch.ones(2, 3))


def test_train_mode_changes_nothing_and_draws_the_same_random_numbers():
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 2, 1))
    twin = copy.deepcopy(net)
    for model in (net, twin):
        model[0].weight.grad = torch.ones_like(model[0].weight)
    before = copy.deepcopy(net.state_dict())
    buffers = dict(net.named_buffers())
    random_state = torch.get_rng_state()
    assert verify(net, twin, IMAGE).max_abs_error == 0
    assert torch.equal(random_state, torch.get_rng_state())
    for model in (net, twin):
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
        assert model[3].weight.grad is None
    assert all(buffer is buffers[name] for name, buffer in net.named_buffers())


def test_train_mode_compares_batch_statistics(pair):
    gated, compact = (model.train() for model in pair)
    assert verify(gated, compact, IMAGE).passed
    with torch.no_grad():
        compact[1].running_mean += 1  # not read in train mode
    assert verify(gated, compact, IMAGE).passed
    with pytest.raises(VerificationError):
        verify(gated.eval(), compact.eval(), IMAGE)


def test_buffers_are_restored_after_an_error_too():
    net = nn.Sequential(nn.BatchNorm2d(3), Returns(lambda x: x.view(7, 7)))
    with pytest.raises(InputError):
        verify(net, net, IMAGE)
    assert int(net[0].num_batches_tracked) == 0
    assert torch.equal(net[0].running_mean, torch.zeros(3))


def test_a_buffer_that_forward_replaces_comes_back():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.get_buffer("calls") + 1
            return x

    model = Counts()
    calls = model.calls
    verify(model, Counts(), IMAGE)
    assert model.calls is calls
    assert float(model.calls) == 0


def test_a_backward_pass_still_to_come_is_not_broken():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    loss = net(IMAGE).sum()
    verify(net, net, IMAGE)
    loss.backward()
    assert net[0].weight.grad is not None


def test_inputs_are_not_changed_and_not_shared():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1))
    x = IMAGE.clone()
    verify(net, copy.deepcopy(net), x)
    assert torch.equal(x, IMAGE)
    doubling = Returns(lambda x: x.mul_(2))
    assert verify(doubling, doubling, x).max_abs_error == 0


def test_inputs_may_be_keywords_and_outputs_dataclasses():
    @dataclasses.dataclass
    class Out:
        total: Tensor
        note: None = None

    class Model(nn.Module):
        def forward(self, *, left: Tensor, right: Tensor) -> Out:
            return Out(left + right)

    assert verify(Model(), Model(), {"left": IMAGE, "right": IMAGE}).passed


def test_integer_outputs_must_be_equal_however_coarse_the_weights():
    class Counts(nn.Module):
        def __init__(self, shift: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
            self.shift = shift

        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1) * 100 + self.shift

    assert verify(Counts(0), Counts(0), IMAGE).passed
    with pytest.raises(VerificationError, match="int64"):
        verify(Counts(0), Counts(1), IMAGE)


def test_float32_outputs_of_a_half_model_get_the_half_tolerance():
    reference = [("output", torch.ones(3))]
    off = [("output", torch.full((3,), 1.02))]
    with pytest.raises(VerificationError):
        compare_outputs(reference, off)
    assert compare_outputs(reference, off, dtypes={torch.bfloat16}).passed


def test_complex_outputs_are_compared():
    first, second = Returns(torch.fft.fft), Returns(lambda x: torch.fft.fft(x).conj())
    assert verify(first, first, IMAGE).passed
    with pytest.raises(VerificationError, match="complex64"):
        verify(first, second, IMAGE)


def test_full_float32_puts_the_settings_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision, torch.backends.cudnn.allow_tf32
    with full_float32():
        assert matmul.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert (matmul.fp32_precision, torch.backends.cudnn.allow_tf32) == before


def test_the_coarsest_dtype_decides():
    assert relative_tolerance([]) == 0
    assert relative_tolerance([torch.int64]) == 0
    assert relative_tolerance([torch.float64, torch.float32]) == RTOL[torch.float32]
    assert RTOL[torch.float64] < RTOL[torch.float32] < RTOL[torch.float16] < RTOL[torch.bfloat16]
