"""Code that nobody can look into: it runs, its channels are frozen by name, and its gradient is kept."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.fx
from gate_checks import assert_close, assert_equal_to_compact, assert_partition, random_keep, run
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.errors import UnsupportedOpError
from fxprune.gated import GatedModule


def by_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy()[:, ::-1].copy())


def kernel(out: Tensor, x: Tensor) -> None:
    """Write into memory that the caller made, as a kernel written in Triton does."""
    out.copy_(torch.from_numpy(x.detach().numpy() * 3.0))


torch.fx.wrap("by_numpy")
torch.fx.wrap("kernel")


def launched(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    kernel(out, x)
    return out


@torch.library.custom_op("fxprune_foreign::without_shapes", mutates_args=())
def without_shapes(x: Tensor, factor: float) -> Tensor:
    return torch.from_numpy(x.detach().numpy() * factor)


@torch.library.custom_op("fxprune_foreign::with_shapes", mutates_args=())
def with_shapes(x: Tensor) -> Tensor:
    return x.flip(1).clone()


with_shapes.register_fake(torch.empty_like)


class Straight(torch.autograd.Function):
    """Signs forward, the plain gradient backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.sign(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class Centred(Straight):
    """It takes a statistic over the channels, which a cut would change."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


class Separate(torch.autograd.Function):
    """The newer form: what is saved is told apart from the forward."""

    @staticmethod
    def forward(x: Tensor, low: float) -> Tensor:
        return x.clamp(low)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.rows = len(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.saved_tensors[0] * ctx.rows, None


class ByNumpy(Straight):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2.0)


class Around(nn.Module):
    """``out(b(inside(a(x))))``."""

    def __init__(self, inside: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1)
        self.out, self.inside = nn.Conv2d(6, 4, 1), inside

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(torch.relu(self.b(self.inside(self.a(x)))))
        return result


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))  # type: ignore[no-any-return]


FROZEN = {
    "custom operator without shapes": (lambda x: without_shapes(x, 2.0), "::without_shapes"),
    "custom operator with shapes": (lambda x: 2 * with_shapes(x), "::with_shapes"),
    "custom operator by name": (torch.ops.fxprune_foreign.with_shapes, "::with_shapes"),
    "function by numpy": (lambda x: 2 * by_numpy(x), "by_numpy .* needs data to run"),
    "kernel that writes": (launched, "kernel .* needs data to run"),
    "gradient of its own, by numpy": (ByNumpy.apply, "ByNumpy.apply .* needs data to run"),
    "gradient of its own, over channels": (Centred.apply, "Centred.apply .* statistic"),
}


def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def reasons_of(gated: GatedModule) -> str:
    return "\n".join(f.reason for f in gated.frozen if f.member.fqn == "a.weight")


def check(model: nn.Module) -> GatedModule:
    gated = auto_gate(model, image())
    assert_partition(gated)
    assert_close(run(gated, image()), run(model, image()), "open gates")
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, image())
    return gated


@pytest.mark.parametrize("name", FROZEN)
def test_channels_are_frozen_by_name(name: str) -> None:
    inside, reason = FROZEN[name]
    gated = check(Around(inside).double().eval())
    assert [g.name for g in gated.groups] == ["b"]
    assert_matches(reasons_of(gated), reason)


def assert_matches(text: str, pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_scripted_module_is_kept_whole() -> None:
    gated = check(Around(scripted()).double().eval())
    assert [g.name for g in gated.groups] == ["b"]
    assert "code that is not torch's own" in reasons_of(gated)


GRADIENTS = {
    "bound": Straight.apply,
    "by name": lambda x: 2 * Straight.apply(x),
    "separate context": lambda x: Separate.apply(x, -0.1),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_gradient_of_its_own_is_kept(name: str) -> None:
    model = Around(GRADIENTS[name]).double().train()
    gated = check(copy.deepcopy(model))
    assert [g.name for g in gated.groups] == ["a", "b"]  # it works on each element alone
    gated.set_keep({g.name: torch.ones(g.size, dtype=torch.bool) for g in gated.groups})
    for one in (model, gated, compact := gated.compact()):
        one.zero_grad()
        one(image()).square().sum().backward()
    expected = dict(model.named_parameters())
    assert expected["a.weight"].grad is not None
    assert expected["a.weight"].grad.abs().sum() > 0
    for other in (gated, compact):
        for key, parameter in other.named_parameters():
            assert_close([parameter.grad], [expected[key].grad], key)  # type: ignore[list-item]


def test_what_calls_it_is_pickled() -> None:
    gated = check(Around(Straight.apply).double().eval())
    for module in (gated, gated.compact()):
        again = pickle.loads(pickle.dumps(module))
        assert_close(run(again, image()), run(module, image()))
        assert_close(run(copy.deepcopy(module), image()), run(module, image()))


class Modes(nn.Module):
    """It calls another function in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = Straight.apply(y) if self.training else Centred.apply(y)
        result: Tensor = self.out(y)
        return result


@pytest.mark.parametrize("training", [False, True])
def test_each_mode_has_its_own(training: bool) -> None:
    model = Modes().double().train(training)
    gated = auto_gate(model, image())
    for module in (gated, gated.compact(), pickle.loads(pickle.dumps(gated.compact()))):
        assert_close(run(module.train(training), image()), run(model, image()))


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)[x[:, :1].expand(-1, 8, -1, -1) > 0]


def test_a_shape_that_depends_on_data_is_told_with_its_line() -> None:
    model = Sorted().double().eval()
    with pytest.raises(UnsupportedOpError, match="depends on the data") as caught:
        auto_gate(model, image())
    assert "test_foreign_code.py" in str(caught.value)
    assert "torch.where" in caught.value.hint
