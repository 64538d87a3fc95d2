"""Hard masks and soft gates: what they do to the function, to gradients, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from gate_checks import assert_close, assert_equal_to_compact, keep_vector, random_keep, run
from small_nets import InPlace, LayerNormMlp, Residual, chain, image, rows
from torch import Tensor, nn

from fxprune.api import auto_gate
from fxprune.errors import GateError
from fxprune.gated import GatedModule
from fxprune.gates import Gate, StatisticMask
from fxprune.statistics import GatedLayerNorm


def gates(gated: GatedModule) -> list[Gate]:
    return [m for m in gated.modules() if isinstance(m, Gate)]


def gates_as_vector(gated: GatedModule) -> Tensor:
    return torch.from_numpy(keep_vector(gated)).double()


# -- hard masks ------------------------------------------------------------------------------------------------


def test_masks_start_open_and_are_read_back() -> None:
    gated = auto_gate(Residual(), image())
    assert {name: mask.shape for name, mask in gated.keep.items()} == {
        group.name: (group.size,) for group in gated.groups
    }
    assert all(mask.dtype is torch.bool and mask.all() for mask in gated.keep.values())
    masks = random_keep(gated, 0.5)
    gated.set_keep(masks)
    assert all(torch.equal(gated.keep[name], mask) for name, mask in masks.items())


def test_groups_that_are_not_named_stay_as_they_are() -> None:
    gated = auto_gate(Residual(), image())
    masks = random_keep(gated, 0.5)
    gated.set_keep(masks)
    opened = torch.ones_like(masks["inner"])
    gated.set_keep({"inner": opened})
    assert torch.equal(gated.keep["inner"], opened)
    assert torch.equal(gated.keep["stem"], masks["stem"])
    gated.set_keep({})
    assert torch.equal(gated.keep["stem"], masks["stem"])


def test_a_mask_that_was_read_is_a_copy() -> None:
    gated = auto_gate(Residual(), image())
    gated.keep["stem"].zero_()
    assert gated.keep["stem"].all()


def test_open_gates_return_their_very_input() -> None:
    gated = auto_gate(Residual(), image())
    assert gated.get_submodule("fxprune_gates")() is None
    assert gates(gated)
    seen = []
    for gate in gates(gated):
        gate.register_forward_hook(lambda m, args, out: seen.append(out is args[0]))
    run(gated, image())
    assert seen == [True] * len(gates(gated))
    gated.set_keep({"stem": torch.arange(8) < 7})
    run(gated, image())
    assert seen[len(gates(gated)) :] == [False] * len(gates(gated))
    gated.set_keep({"stem": torch.ones(8, dtype=torch.bool)})
    seen.clear()
    run(gated, image())
    assert all(seen)


ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Hardswish, nn.GELU, nn.Tanh, nn.ELU)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("training", [False, True])
def test_a_gate_of_zero_is_removal(act: type[nn.Module], training: bool) -> None:
    """Compare with a smaller net built by hand, for activations that are not 0 at 0."""
    model, x = chain(act()), image()
    keep = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0], dtype=torch.bool)
    kept = int(keep.sum())
    by_hand = nn.Sequential(
        nn.Conv2d(3, kept, 3, padding=1),
        nn.BatchNorm2d(kept),
        act(),
        nn.Conv2d(kept, 4, 3, padding=1),
    ).double()
    small = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor[keep] if tensor.dim() and tensor.shape[0] == 8 else tensor
        small[name] = tensor[:, keep] if name == "3.weight" else tensor
    by_hand.load_state_dict(small)
    gated = auto_gate(model, x)
    gated.set_keep({gated.groups[0].name: keep})
    gated.train(training), by_hand.train(training)
    assert_close(run(gated, x), run(by_hand, x))


def test_zeroed_weights_are_not_removal() -> None:
    """Why there are gates at all; and the comparison above can fail."""
    model, x = chain(nn.Softplus()), image()
    gated = auto_gate(model, x)
    gated.set_keep({gated.groups[0].name: torch.arange(8) < 4})
    with torch.no_grad():
        for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
            model.get_parameter(name)[4:] = 0
    assert (run(model, x)[0] - run(gated, x)[0]).abs().max() > 0.01


@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_statistics_of_a_layer_norm_are_those_of_what_is_kept(function: bool, share: float) -> None:
    model, x = LayerNormMlp(function), rows()
    gated = auto_gate(model, x)
    assert isinstance(gated.norm, GatedLayerNorm) is not function
    assert any(isinstance(m, StatisticMask) for m in gated.modules())
    assert_close(run(gated, x), run(model, x))
    gated.set_keep(random_keep(gated, share))
    (keep,) = gated.keep.values()
    with torch.no_grad():
        y = model.make(x)[:, keep]
        y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        y = y * model.norm.weight[keep] + model.norm.bias[keep]
        expected = y @ model.read.weight[:, keep].T + model.read.bias
    assert_close(run(gated, x), [expected])
    compact = assert_equal_to_compact(gated, x)
    if not function:
        assert type(compact.norm) is nn.LayerNorm
        assert compact.norm.normalized_shape == (int(keep.sum()),)
    assert type(model.norm) is nn.LayerNorm


def test_an_in_place_activation_after_the_gated_value() -> None:
    model, x = InPlace(), image()
    gated = auto_gate(model, x)
    assert_close(run(gated, x), run(model, x))
    for share in (0.2, 0.8):
        gated.set_keep(random_keep(gated, share))
        before = x.clone()
        assert_equal_to_compact(gated, x)
        assert torch.equal(x, before)


def test_what_is_removed_gets_no_gradient() -> None:
    gated, x = auto_gate(Residual().train(), image()), image()
    masks = random_keep(gated, 0.5)
    gated.set_keep(masks)
    gated(x).square().sum().backward()
    grad = gated.get_parameter("stem.weight").grad
    assert not grad[~masks["stem"]].any()
    assert grad[masks["stem"]].flatten(1).any(1).all()
    assert not gated.get_parameter("inner.weight").grad[:, ~masks["stem"]].any()


# -- soft gates ------------------------------------------------------------------------------------------------


def test_soft_gates_at_0_and_1_are_hard_masks() -> None:
    gated, x = auto_gate(Residual(), image()), image()
    gated.set_keep(random_keep(gated, 0.5))
    hard, vector = run(gated, x), gates_as_vector(gated)
    gated.set_keep({g.name: torch.ones(g.size, dtype=torch.bool) for g in gated.groups})
    with gated.soft_gates(vector):
        assert_close(run(gated, x), hard)
    assert (run(gated, x)[0] - hard[0]).abs().max() > 1e-3


@pytest.mark.parametrize("model", [Residual, LayerNormMlp, InPlace])
def test_the_gradient_of_soft_gates_is_right(model: type[nn.Module]) -> None:
    x = rows() if model is LayerNormMlp else image()
    gated = auto_gate(model(), x)
    start = torch.linspace(0.3, 0.9, gated.plan.n_units, dtype=torch.float64)

    def loss(vector: Tensor) -> Tensor:
        with gated.soft_gates(vector):
            return gated(x).square().sum()

    assert torch.autograd.gradcheck(loss, (start.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_soft_gates_keep_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    gated, x = auto_gate(Residual(), image()), image()
    vector = torch.full((gated.plan.n_units,), 0.5, dtype=dtype, requires_grad=True)
    with gated.soft_gates(vector):
        out = gated(x)
    out.sum().backward()
    assert out.dtype is torch.float64
    assert vector.grad is not None
    assert vector.grad.dtype is dtype


def test_soft_gates_end_with_their_block() -> None:
    gated, x = auto_gate(Residual(), image()), image()
    opened = run(gated, x)
    one, two = torch.full((2, gated.plan.n_units), 0.5, dtype=torch.float64)
    with gated.soft_gates(one):
        outer = run(gated, x)
        with gated.soft_gates(two * 0.5):
            assert (run(gated, x)[0] - outer[0]).abs().max() > 1e-3
        assert_close(run(gated, x), outer)
    assert_close(run(gated, x), opened)
    with pytest.raises(KeyError), gated.soft_gates(one):
        raise KeyError
    assert_close(run(gated, x), opened)


def test_units_are_numbered_group_after_group() -> None:
    gated, x = auto_gate(Residual(), image()), image()
    for group in gated.groups:
        mask = torch.ones(group.size, dtype=torch.bool)
        mask[1] = False
        gated.set_keep({g.name: torch.ones(g.size, dtype=torch.bool) for g in gated.groups})
        gated.set_keep({group.name: mask})
        vector = torch.cat([gated.keep[g.name] for g in gated.groups]).double()
        hard = run(gated, x)
        with gated.soft_gates(vector):
            assert_close(run(gated, x), hard)


# -- what is refused -------------------------------------------------------------------------------------------

BAD_MASKS = {
    "a name that is no group": ({"stm": torch.ones(8).bool()}, r"no group named 'stm'[\s\S]*stem"),
    "a name that is no string": ({3: torch.ones(8).bool()}, "no group named 3"),
    "too short": ({"stem": torch.ones(7).bool()}, r"'stem' must have shape \(8,\)[\s\S]*\(7,\)"),
    "two axes": (
        {"stem": torch.ones(8, 1).bool()},
        r"'stem' must have shape \(8,\)[\s\S]*\(8, 1\)",
    ),
    "numbers": ({"stem": torch.ones(8)}, r"must be a bool tensor[\s\S]*torch.float32[\s\S]*> 0"),
    "a list": ({"stem": [True] * 8}, r"must be a bool tensor[\s\S]*list"),
    "nothing kept": ({"stem": torch.zeros(8).bool()}, "'stem' keeps nothing"),
}


@pytest.mark.parametrize("name", BAD_MASKS)
def test_bad_masks_are_refused_and_change_nothing(name: str) -> None:
    bad, message = BAD_MASKS[name]
    gated = auto_gate(Residual(), image())
    gated.set_keep(random_keep(gated, 0.5))
    before = gated.keep
    with pytest.raises(GateError, match=message):
        gated.set_keep({"inner": ~before["inner"], **bad})
    assert all(torch.equal(gated.keep[group], mask) for group, mask in before.items())


def test_masks_that_are_no_mapping_are_refused() -> None:
    with pytest.raises(GateError, match="list"):
        auto_gate(Residual(), image()).set_keep([torch.ones(8).bool()])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "vector",
    [
        torch.ones(3),
        torch.ones(1, 14),
        [1.0] * 14,
    ],
)
def test_bad_soft_gates_are_refused(vector: Any) -> None:
    gated = auto_gate(Residual(), image())
    with (
        pytest.raises(GateError, match=r"gate vector must have shape \(14,\)"),
        gated.soft_gates(vector),
    ):
        pass
    assert gated.get_submodule("fxprune_gates").soft is None


def test_a_model_without_groups() -> None:
    model, x = nn.Sequential(nn.Linear(6, 2)).double(), rows()
    gated = auto_gate(model, x)
    assert gated.groups == ()
    gated.set_keep({})
    with pytest.raises(GateError, match=r"no group named 'a'[\s\S]*no prunable group"):
        gated.set_keep({"a": torch.ones(2).bool()})
    assert (gated.cost().params, gated.cost().macs) == (14, 5 * 12)
    assert_equal_to_compact(gated, x)
    assert_close(run(gated, x), run(model, x))


def test_a_model_without_groups_has_no_masks_and_a_cost() -> None:
    gated = auto_gate(nn.Sequential(nn.Linear(6, 2)).double(), rows())
    assert gated.keep == {}
    assert gated.expected_cost().params.item() == 14
    with gated.soft_gates(torch.ones(0)):
        pass


def test_repr_of_a_gate_says_how_wide_it_is() -> None:
    assert re.search(r"Gate\(width=8\)", repr(auto_gate(chain(), image())))
