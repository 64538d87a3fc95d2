"""What a gated model is after `shrink_`: its forms, its units, what it tells of the original."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

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
from random_nets import random_net
from shrinking import NETS, OPTIMIZERS, Training, assert_equal_bits, close, further, gate
from test_regions import CASES as REGIONS
from test_regions import gate as gate_region
from torch import nn

import fxprune
from fxprune.errors import ConfigError, GateError
from fxprune.gated import GatedModule


@pytest.mark.parametrize(
    "seed", [*range(8), *(pytest.param(s, marks=pytest.mark.slow) for s in range(8, 200))]
)
def test_random_networks(seed: int) -> None:
    """Compact after shrinks is compact alone, bit for bit; two shrinks are one by the union."""
    model, x = random_net(seed)
    no_dropout(model)
    whole = fxprune.auto_gate(model, x)
    small = copy.deepcopy(whole)
    for number, share in enumerate((0.8, 0.6)):
        whole.set_keep(further(small, share, 10 * seed + number))
        small.shrink_()
        assert_shrunk(small, whole, x)
    once = fxprune.auto_gate(model, x)
    once.set_keep(whole.keep)
    once.shrink_()
    assert [str(g) for g in once.groups] == [str(g) for g in small.groups]
    assert_equal_bits(once.state_dict(), small.state_dict())
    assert_equal_bits({"y": run(once, x)[0]}, {"y": run(small, x)[0]})
    small.set_keep(random_keep(small, 0.6, seed))
    assert_cost(small, assert_equal_to_compact(small, x), x)


def assert_shrunk(small: GatedModule, whole: GatedModule, *inputs: Any) -> None:
    """Check a shrunk model against the original with the same units masked."""
    assert_partition(small)
    assert all(bool(mask.all()) for mask in small.keep.values())
    assert small.cost() == whole.cost()
    assert small.dense_cost == whole.dense_cost
    for training in (False, True):
        for forms in (whole, small):
            forms.train(training)
        expected = run(copy.deepcopy(whole), *inputs)
        loaded = pickle.loads(pickle.dumps(small))
        for form in (copy.deepcopy(small), loaded):
            assert_close(run(form, *inputs), expected, "shrunk against masked")
        cut, alone = small.compact(), whole.compact()
        assert_equal_bits(cut.state_dict(), alone.state_dict())
        outputs = zip(run(cut, *inputs), run(alone, *inputs), strict=True)
        assert all(torch.equal(a, b) for a, b in outputs)
    for forms in (whole, small):
        forms.eval()


@pytest.mark.parametrize("name", REGIONS)
def test_models_captured_by_regions(name: str) -> None:
    _, whole, inputs = gate_region(name)
    small = copy.deepcopy(whole)
    for number in range(2):
        whole.set_keep(further(small, 0.6, number))
        small.shrink_()
        assert_shrunk(small, whole, *inputs)


def test_a_region_model_trains_on() -> None:
    _, masked, (x,) = gate_region("branches")
    small = copy.deepcopy(masked)
    optimizers = [OPTIMIZERS["sgd"](g.parameters()) for g in (masked, small)]
    for seed in range(2):
        masked.set_keep(further(small, 0.7, seed))
        small.shrink_(optimizers[1])
        for _ in range(3):
            losses = []
            for gated, optimizer in zip((masked, small), optimizers, strict=True):
                optimizer.zero_grad()
                losses.append(gated(x)["scores"].square().sum())
                losses[-1].backward()
                optimizer.step()
            close(losses[1], losses[0], "loss")


def test_nothing_closed_nothing_happens() -> None:
    one = Training.of("residual", "adamw")
    one.step()
    before, code = copy.deepcopy(one.gated.state_dict()), one.gated.code
    shrunk = one.gated.shrink_(one.optimizer)
    assert not shrunk
    assert str(shrunk) == "nothing was closed, nothing was removed"
    assert shrunk.units.tolist() == list(range(one.gated.plan.n_units))
    assert one.gated.code == code
    assert_equal_bits(one.gated.state_dict(), before)


def test_units_are_told_by_the_numbers_they_had() -> None:
    gated, _, _ = gate("residual")
    scores = torch.rand(gated.plan.n_units)
    keep = scores > 0.3
    gated.set_keep({name: keep[at] for name, at in gated.plan.group_slices().items()})
    shrunk = gated.shrink_()
    assert torch.equal(scores[shrunk.units], scores[keep])
    assert len(shrunk.units) == gated.plan.n_units == sum(g.size for g in gated.groups)
    assert sum(shrunk.removed.values()) == int((~keep).sum())
    assert "parameters before" in str(shrunk)


def test_sampled_gates_follow() -> None:
    gated, x, y = gate("residual")
    gates = torch.rand(gated.plan.n_units, dtype=torch.float64)
    gated.set_keep(random_keep(gated, 0.7))
    keep = torch.cat(list(gated.keep.values()))
    gated.train().sampled_gates = (gates * keep).requires_grad_()
    F.cross_entropy(gated(x), y).backward()
    expected, slopes = gated(x), gated.sampled_gates.grad
    gated.shrink_()
    assert torch.equal(gated.sampled_gates, gates[keep])
    assert torch.equal(gated.sampled_gates.grad, slopes[keep])
    assert gated.sampled_gates.requires_grad
    close(gated(x), expected, "outputs")


class Odd(torch.optim.SGD):
    """Remembers something per pair of rows."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["pairs"] = torch.zeros(len(p), len(p))


@pytest.mark.parametrize("case", ["another model", "no optimizer", "odd state", "soft gates"])
def test_an_error_leaves_everything_as_it_was(case: str) -> None:
    one = Training.of("transformer", "adamw")
    one.step()
    one.gated.set_keep(random_keep(one.gated, 0.5))
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    given: Any = {"another model": [one.optimizer, other], "no optimizer": one.gated}.get(case)
    if case == "odd state":
        odd = Odd(one.gated.parameters(), 0.0)
        one.gated(one.x).sum().backward()
        odd.step()
        given = (one.optimizer, odd)
    before = copy.deepcopy((one.gated.state_dict(), one.optimizer.state_dict(), one.gated.keep))
    expected = one.gated(one.x)
    if case == "soft gates":
        gates = torch.ones(one.gated.plan.n_units)
        with one.gated.soft_gates(gates), pytest.raises(GateError, match="inside soft_gates"):
            one.gated.shrink_(one.optimizer)
    else:
        told = {
            "another model": "holds none of the gated model's parameters",
            "no optimizer": "takes an optimizer, a list of optimizers, or None",
            "odd state": "state 'pairs' of a parameter cannot be cut",
        }
        with pytest.raises(ConfigError, match=told[case]):
            one.gated.shrink_(given)
    assert_equal_bits(one.gated.state_dict(), before[0])
    assert_equal_bits(one.gated.keep, before[2])
    assert str(one.optimizer.state_dict()) == str(before[1])
    assert torch.equal(one.gated(one.x), expected)


def test_several_optimizers_and_foreign_parameters() -> None:
    gated, x, y = gate("residual")
    temperature = nn.Parameter(torch.ones(7, dtype=torch.float64))
    norms = [p for n, p in gated.named_parameters() if "norm" in n]
    others = [p for n, p in gated.named_parameters() if "norm" not in n]
    optimizers = [
        torch.optim.AdamW([{"params": norms, "lr": 0.1}, {"params": [temperature]}]),
        torch.optim.Adafactor(others, 0.01),
    ]
    twin = copy.deepcopy((gated, optimizers, temperature))
    for model, many, scale in ((gated, optimizers, temperature), twin):
        (F.cross_entropy(model(x), y) * scale.mean()).backward()
        for optimizer in many:
            optimizer.step()
    twin[0].set_keep(further(gated, 0.6, 0))
    gated.shrink_(optimizers)
    assert [len(g["params"]) for g in optimizers[0].param_groups] == [len(norms), 1]
    assert torch.equal(optimizers[0].state[temperature]["exp_avg"].shape and temperature, twin[2])
    weight = gated.get_parameter("3.deep.weight")
    rows = optimizers[1].state[weight]["row_var"]
    assert rows.shape == (*weight.shape[:-1], 1)
    for optimizer in optimizers:
        optimizer.zero_grad()
    (F.cross_entropy(gated(x), y) * temperature.mean()).backward()
    for optimizer in optimizers:
        optimizer.step()


def test_modules_and_hooks_stay() -> None:
    gated, x, y = gate("residual")
    conv, norm = gated.get_submodule("3.deep"), gated.get_submodule("3.norm")
    seen, grads = [], []
    conv.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    conv.weight.register_hook(lambda grad: grads.append(grad.shape[0]))
    gated.set_keep({n: torch.arange(g) < g - 2 for n, g in widths(gated).items()})
    gated.shrink_()
    F.cross_entropy(gated(x), y).backward()
    assert gated.get_submodule("3.deep") is conv
    assert seen == grads == [14]
    assert (conv.out_channels, norm.num_features) == (14, 14)


def widths(gated: GatedModule) -> dict[str, int]:
    return {group.name: group.size for group in gated.groups}


# -- the original model --------------------------------------------------------------------------


def test_recipes_speak_of_the_original_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(6, 3, 8, 8, dtype=torch.float64), NETS["transformer"]().double()
    gated = fxprune.auto_gate(model, x)
    for seed in range(2):
        gated.set_keep(random_keep(gated, 0.8, seed))
        gated.shrink_()
    gated.set_keep(random_keep(gated, 0.8, 2))
    compact = gated.compact()
    fxprune.save(compact, tmp_path / "small.pt")
    loaded = fxprune.load(tmp_path / "small.pt", model)
    assert_equal_bits(loaded.state_dict(), compact.state_dict())
    assert torch.equal(loaded.eval()(x), compact.eval()(x))
    fxprune.verify(gated.eval(), compact.eval(), x)


def test_budgets_are_shares_of_the_original_model() -> None:
    gated, _, _ = gate("residual")
    dense = gated.cost()
    fxprune.select(gated, macs=0.7)
    gated.shrink_()
    assert gated.dense_cost == dense
    assert gated.cost().macs == pytest.approx(0.7 * dense.macs, rel=0.01)
    chosen = fxprune.select(gated, macs=0.4)
    assert chosen.reached == pytest.approx(0.4, rel=0.01)
    assert gated.cost().macs == pytest.approx(0.4 * dense.macs, rel=0.01)


@pytest.mark.parametrize("name", ["residual", "transformer", "two modes", "recurrent"])
def test_a_checkpoint_is_taken_up_in_a_model_made_anew(name: str) -> None:
    one = Training.of(name, "adamw")
    for seed in range(2):
        one.step()
        one.gated.set_keep(random_keep(one.gated, 0.8, seed))
        one.gated.shrink_(one.optimizer)
    one.gated.set_keep(random_keep(one.gated, 0.9, 2))  # closed, and not cut out yet
    one.step()
    saved = copy.deepcopy((one.gated.remaining, one.gated.state_dict(), one.optimizer.state_dict()))
    fresh = Training.of(name, "adamw")
    fresh.gated.shrink_to_(saved[0], fresh.optimizer)
    fresh.gated.load_state_dict(saved[1])
    fresh.optimizer.load_state_dict(saved[2])
    assert_equal_bits(fresh.gated.keep, one.gated.keep)
    assert_equal_bits(fresh.gated.remaining, one.gated.remaining)
    for _ in range(2):
        assert torch.equal(fresh.step(), one.step())
    assert_equal_bits(fresh.gated.state_dict(), one.gated.state_dict())


def test_a_model_can_be_shrunk_further_but_not_grown() -> None:
    gated, x, _ = gate("residual")
    whole = gated.remaining
    gated.set_keep(random_keep(gated, 0.7))
    gated.shrink_()
    expected = gated(x)
    assert not gated.shrink_to_(gated.remaining)
    with pytest.raises(GateError, match="have been removed already"):
        gated.shrink_to_(whole)
    with pytest.raises(GateError, match="no group named 'x'"):
        gated.shrink_to_({"x": torch.ones(2, dtype=torch.bool)})
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    name, mask = next(iter(gated.remaining.items()))
    mask[mask.nonzero()[0]] = False
    with pytest.raises(ConfigError, match="none of the gated model's parameters"):
        gated.shrink_to_({name: mask}, other)
    assert torch.equal(gated(x), expected)
    assert gated.shrink_to_({name: mask}).removed == {name: 1}
    assert torch.equal(gated.remaining[name], mask)
