"""The random networks are what a fuzz test may rely on: valid, repeatable, traceable, varied."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from random_draw import Draw
from random_nets import FEATURES, RandomNet, describe, outputs, random_net
from torch import Tensor, nn

SEEDS = range(100)


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return outputs(model(x))


def batch(count: int, x: Tensor) -> Tensor:
    """Return an input like ``x`` with another batch size."""
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *x.shape[1:], generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", SEEDS)
def test_runs_at_any_batch_size_and_traces(seed: int) -> None:
    model, x = random_net(seed)
    traced = torch.fx.symbolic_trace(model)
    assert x.shape[0] == 2
    assert not any(module.training for module in model.modules())
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert all(t.dtype is torch.float64 for t in (x, *floats))
    for count in (1, 2, 3):
        inputs = x if count == 2 else batch(count, x)
        before = inputs.clone()
        for y, z in zip(run(model, inputs), run(traced, inputs), strict=True):
            assert y.shape[0] == count
            assert y.isfinite().all()
            assert y.abs().max() < 100
            torch.testing.assert_close(z, y, rtol=0, atol=0)
        assert torch.equal(inputs, before)


@pytest.mark.parametrize("seed", SEEDS)
def test_same_seed_gives_same_network(seed: int) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, x = random_net(seed)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, same_x = random_net(seed)
    assert torch.equal(x, same_x)
    assert describe(first) == describe(second)
    tensors = second.state_dict()
    assert list(first.state_dict()) == list(tensors)
    assert all(torch.equal(t, tensors[name]) for name, t in first.state_dict().items())
    assert all(torch.equal(y, z) for y, z in zip(run(first, x), run(second, x), strict=True))


@pytest.mark.parametrize("seed", SEEDS[::5])
def test_samples_of_a_batch_do_not_mix(seed: int) -> None:
    model, x = random_net(seed)
    for whole, one in zip(run(model, x), run(model, x[1:]), strict=True):
        torch.testing.assert_close(whole[1:], one, rtol=1e-9, atol=1e-9)


def test_every_feature_appears_and_programs_have_3_to_12_steps() -> None:
    models = [random_net(seed)[0] for seed in range(200)]
    counts = Counter(name for model in models for name in model.features_used)
    assert {name: counts[name] for name in FEATURES if counts[name] < 3} == {}
    assert counts.keys() <= FEATURES
    assert {len(model.steps) for model in models} == set(range(3, 13))
    widest = max(shape[1] for model in models for shape in model.shapes)
    assert widest <= 24


def test_norms_hold_no_default_values() -> None:
    norms = [
        module
        for seed in range(20)
        for module in random_net(seed)[0].modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    assert norms
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.running_mean.abs().min() > 0
        assert (norm.running_var != 1).all()
        assert not norm.affine or (norm.weight != 1).all()


def test_description_names_every_step() -> None:
    model, _ = random_net(3)
    text = describe(model)
    assert text.startswith("random_net(3): ")
    for index in range(len(model.shapes)):
        assert f"\nv{index} = " in text
    assert all(name in text for name in model.features_used)


def test_mistakes_are_refused() -> None:
    with pytest.raises(TypeError, match="not a RandomNet: Linear"):
        describe(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"unknown features: \['conv9x9'\]"):
        Draw(0).use("conv1x1", "conv9x9")


def test_a_seed_differs_from_the_next() -> None:
    texts = {describe(model).partition(":")[2] for model, _ in map(random_net, range(50))}
    assert len(texts) == 50
    assert isinstance(random_net(0)[0], RandomNet)
