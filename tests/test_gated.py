"""The gated module: masks, soft gates, modes, and everything a module is expected to survive."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from gate_checks import (
    assert_close,
    assert_cost,
    assert_equal_to_compact,
    assert_partition,
    no_dropout,
    random_keep,
    run,
)
from small_nets import AuxHead, LayerNormMlp, Residual, image, rows
from torch import Tensor, nn

from fxprune.api import auto_gate
from fxprune.gated import GatedModule


def half_open(model: nn.Module, x: Tensor, seed: int = 0) -> GatedModule:
    gated = auto_gate(model, x)
    gated.set_keep(random_keep(gated, 0.5, seed))
    return gated


def same_masks(one: GatedModule, other: GatedModule) -> bool:
    return one.keep.keys() == other.keep.keys() and all(
        torch.equal(one.keep[name], other.keep[name]) for name in one.keep
    )


def text(gated: GatedModule) -> list[str]:
    """Describe the graph, without the annotations of its inputs."""
    return [f"{n.name} = {n.op} {n.target} {n.args} {n.kwargs}" for n in gated.graph.nodes]


# -- copies ----------------------------------------------------------------------------------------------------


def pickled(gated: GatedModule) -> GatedModule:
    return pickle.loads(pickle.dumps(gated))


def saved(gated: GatedModule) -> GatedModule:
    file = io.BytesIO()
    torch.save(gated, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = pytest.mark.parametrize("copied", [pickled, saved, copy.deepcopy])
NETS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "residual": lambda: (Residual(), image()),
    "aux_head": lambda: (AuxHead(), image()),
    "layer_norm_module": lambda: (LayerNormMlp(), rows()),
    "layer_norm_function": lambda: (LayerNormMlp(function=True), rows()),
}


@COPIES
@pytest.mark.parametrize("name", NETS)
def test_a_copy_is_the_same_model(copied: Callable[[GatedModule], GatedModule], name: str) -> None:
    model, x = NETS[name]()
    no_dropout(model)
    gated = half_open(model, x)
    twin = copied(gated)
    assert isinstance(twin, GatedModule)
    assert twin.training == gated.training
    assert same_masks(twin, gated)
    assert (twin.groups, twin.frozen, twin.cost()) == (gated.groups, gated.frozen, gated.cost())
    assert list(twin.state_dict()) == list(gated.state_dict())
    for training in (False, True):
        assert_close(run(twin.train(training), x), run(gated.train(training), x))
        assert text(twin) == text(gated)
        assert_close(run(twin.compact(), x), run(gated.compact(), x))


@COPIES
def test_a_copy_shares_nothing(copied: Callable[[GatedModule], GatedModule]) -> None:
    gated, x = half_open(Residual(), image()), image()
    before = run(gated, x)
    twin = copied(gated)
    theirs = {t.data_ptr() for t in (*twin.parameters(), *twin.buffers())}
    assert not theirs & {t.data_ptr() for t in (*gated.parameters(), *gated.buffers())}
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.set_keep({g.name: torch.ones(g.size, dtype=torch.bool) for g in twin.groups})
    assert_close(run(gated, x), before)


@COPIES
def test_a_copy_keeps_the_mode_of_each_module(copied: Callable[[GatedModule], GatedModule]) -> None:
    model = Residual().train()
    model.norm.eval()
    gated = auto_gate(model, image())
    for module in (gated, copied(gated), gated.compact()):
        assert module.training
        assert not module.norm.training


# -- state -----------------------------------------------------------------------------------------------------


def test_state_dict_carries_weights_and_masks() -> None:
    x = image()
    gated = half_open(Residual(), x)
    fresh = auto_gate(Residual(), x)
    assert not fresh.load_state_dict(gated.state_dict()).missing_keys
    assert same_masks(fresh, gated)
    assert_close(run(fresh, x), run(gated, x))
    fresh.load_state_dict(auto_gate(Residual(), x).state_dict())
    assert all(mask.all() for mask in fresh.keep.values())
    assert fresh.get_submodule("fxprune_gates")() is None


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_state_dict_fits_and_leaves_the_masks(assign: bool) -> None:
    x = image()
    gated = half_open(Residual(), x)
    masks = gated.keep
    dense = Residual()
    dense.load_state_dict({k: t + 0.1 for k, t in dense.state_dict().items()})
    result = gated.load_state_dict(dense.state_dict(), assign=assign)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert all(torch.equal(gated.keep[name], mask) for name, mask in masks.items())
    gated.set_keep({name: torch.ones_like(mask) for name, mask in masks.items()})
    assert_close(run(gated, x), run(dense, x))


def test_a_dense_state_dict_fits_inside_another_module() -> None:
    outer = nn.Sequential(half_open(Residual(), image()))
    dense = nn.Sequential(Residual())
    result = outer.load_state_dict(dense.state_dict())
    assert (result.missing_keys, result.unexpected_keys) == ([], [])


class Constant(nn.Module):
    """Its forward makes a tensor, which tracing stores beside the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.read = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.register_buffer("scale", torch.rand(8, 1, 1), persistent=False)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.make(x) * self.scale + torch.tensor(2.0))


def test_what_is_not_in_the_original_state_is_not_in_the_gated() -> None:
    model, x = Constant(), image()
    gated = half_open(model, x)
    assert set(gated.state_dict()) - {"fxprune_gates.value"} == set(model.state_dict())
    gated.load_state_dict(model.state_dict())
    assert_close(run(pickled(gated), x), run(gated, x))
    assert_equal_to_compact(gated, x)


# -- dtype, mode -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    x = image()
    gated = half_open(Residual(), x)
    masks = gated.keep
    gated.to(dtype)
    (out,) = run(gated, x.to(dtype))
    assert out.dtype is dtype
    assert all(torch.equal(gated.keep[name], mask) for name, mask in masks.items())
    (small,) = run(gated.compact(), x.to(dtype))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(small, out, rtol=tolerance, atol=tolerance)


def test_a_net_that_depends_on_its_mode() -> None:
    model, x = AuxHead(), image()
    no_dropout(model)
    gated = auto_gate(model, x)
    assert_partition(gated)
    assert [group.name for group in gated.groups] == ["stem.0", "body", "aux.0"]
    assert gated.cost().params == sum(p.numel() for p in model.parameters())
    for training in (True, False, True):
        assert len(run(gated.train(training), x)) == 1 + training
    gated.load_state_dict(model.state_dict())
    for training in (False, True):
        gated.train(training), model.train(training)
        assert_close(run(gated, x), run(model, x), "open gates against the original")
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.eval().compact()
    assert_cost(gated, compact, x)
    for training in (False, True, False):
        gated.train(training), compact.train(training)
        assert_close(run(compact, x), run(gated, x), "compact against gated")


def test_both_graphs_of_the_compact_model_read_the_same_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), FunctionalNorm(8), nn.Conv2d(8, 4, 1)).double()
    gated, x = half_open(model, image()), image()
    compact = gated.compact()
    assert gated.cost().params == sum(p.numel() for p in compact.parameters())
    evaluation, training = compact.modes
    for kind in ("parameters", "buffers"):
        tensors = dict(getattr(evaluation, f"named_{kind}")())
        assert all(t is tensors[name] for name, t in getattr(training, f"named_{kind}")())
    for network in (gated.train(), compact.train()):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
        network(x).square().sum().backward()
        optimiser.step()
    assert_close(run(compact.eval(), x), run(gated.eval(), x), "after a step of training")


class FunctionalNorm(nn.Module):
    """Reads its tensors in both modes' graphs, by name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.register_buffer("mean", torch.rand(width))
        self.register_buffer("variance", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.scale, training=self.training)


def test_train_of_a_surrounding_module_switches_the_graph() -> None:
    outer, x = nn.Sequential(auto_gate(AuxHead(), image())), image()
    assert len(run(outer.eval(), x)) == 1
    assert len(run(outer.train(), x)) == 2


@pytest.mark.parametrize(
    "training",
    [
        False,
        True,
    ],
)
def test_the_compact_model_is_in_the_mode_of_the_gated(training: bool) -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()), nn.Conv2d(8, 4, 1)).double()
    compact = auto_gate(model, image()).train(training).compact()
    assert {name: m.training for name, m in compact.named_modules() if m.training != training} == {}


def test_compact_leaves_the_gated_model_alone() -> None:
    gated, x = half_open(AuxHead(), image()), image()
    text, state, before = str(gated.graph), copy.deepcopy(gated.state_dict()), run(gated, x)
    compact = gated.compact()
    with torch.no_grad():
        for parameter in compact.parameters():
            parameter.zero_()
    assert str(gated.graph) == text
    assert all(torch.equal(t, state[name]) for name, t in gated.state_dict().items())
    assert_close(run(gated, x), before)
