"""What complexity-aware training refuses, what it survives, and what beta lets leave."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from controllers.aware_loops import AwareLoop, state_of
from controllers.loops import batch, build, differing
from torch import nn

from fxprune import auto_gate
from fxprune.controllers import ComplexityAware
from fxprune.errors import BudgetError, ConfigError, GateError
from fxprune.gated import GatedModule

STEPS = 40


@pytest.fixture(scope="module")
def shared() -> GatedModule:
    """A gated model that no refused controller may change."""
    return auto_gate(build("linear"), batch(0)[0]).train()


def attempt(gated: Any, **arguments: Any) -> ComplexityAware:
    given: dict[str, Any] = {"steps": STEPS, **arguments}
    if "optimizer" not in given:
        given["optimizer"] = torch.optim.SGD(gated.parameters(), 0.1)
    return ComplexityAware(gated, **given)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing asked": ({}, ConfigError, "exactly one of 'nu', 'macs' and 'params'"),
    "two budgets": ({"macs": 0.5, "params": 0.5}, ConfigError, "exactly one of"),
    "budget and price": ({"macs": 0.5, "nu": 1.0}, ConfigError, "exactly one of"),
    "budget 0": ({"macs": 0.0}, BudgetError, r"share in \(0, 1\]"),
    "unreachable": ({"params": 1e-6}, BudgetError, "No keep-mask reaches params"),
    "nothing may leave": ({"macs": 0.5, "beta": 1.0}, BudgetError, "No keep-mask reaches macs"),
    "price 0": ({"nu": 0.0}, ConfigError, "'nu' parameter must be a number above 0"),
    "price NaN": ({"nu": float("nan")}, ConfigError, "'nu' parameter"),
    "price in words": ({"nu": "high"}, ConfigError, "'nu' parameter"),
    "alpha above 1": ({"nu": 1.0, "alpha": 1.1}, ConfigError, "'alpha' parameter must be a number from 0"),
    "alpha of True": ({"nu": 1.0, "alpha": True}, ConfigError, "'alpha' parameter"),
    "beta below 0": ({"macs": 0.5, "beta": -0.1}, ConfigError, "'beta' parameter"),
    "beta None": ({"macs": 0.5, "beta": None}, ConfigError, "'beta' parameter"),
    "no steps": ({"macs": 0.5, "steps": 0}, ConfigError, "'steps' argument must be an integer >= 1"),
    "seed -1": ({"macs": 0.5, "seed": -1}, ConfigError, "'seed' argument"),
    "round_to 0": ({"macs": 0.5, "round_to": 0}, ConfigError, "'round_to' parameter"),
    "no optimizer": ({"macs": 0.5, "optimizer": None}, ConfigError, r"torch\.optim\.Optimizer"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_and_leave_the_model_as_it_was(
    name: str, shared: GatedModule
) -> None:
    arguments, error, message = WRONG[name]
    before = {key: value.clone() for key, value in shared.state_dict().items()}
    with pytest.raises(error, match=message):
        attempt(shared, **arguments)
    assert differing(before, shared.state_dict()) == []
    assert shared.sampled_gates is None


def test_models_without_gates_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a gated model"):
        attempt(build("linear"), macs=0.5)


def test_sampled_gates_of_the_wrong_shape_are_refused(shared: GatedModule) -> None:
    with pytest.raises(GateError, match="must have shape"):
        shared.sampled_gates = torch.ones(3)
    assert shared.sampled_gates is None


@pytest.mark.parametrize("mode", ["eval", "another model", "no backward"])
def test_a_step_that_did_not_go_through_the_gates_is_refused(mode: str) -> None:
    loop = AwareLoop("linear", steps=STEPS)
    if mode == "eval":
        loop.gated.eval()
        loop.train_weights()
    elif mode == "another model":
        nn.functional.mse_loss(build("linear")(batch(0)[0]), torch.zeros(12, 3)).backward()
    before = state_of(loop)
    with pytest.raises(ConfigError, match="loss of this step does not depend on the gates"):
        loop.aware.step()
    assert differing(state_of(loop), before) == []
    loop.gated.train()
    assert loop.run().aware.finish().met


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_skipped_and_told(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    loop = AwareLoop("linear", steps=STEPS).run(until=3)
    loop.loss(*batch(0)).mul(value).backward()
    before = loop.aware.state_dict()["search"]["slopes"]
    with caplog.at_level(logging.WARNING, "fxprune"):
        loop.aware.step()
    assert [r.getMessage() for r in caplog.records] == [
        "step 4: the loss's gradient is not finite; skipped"
    ]
    after = loop.aware.state_dict()["search"]["slopes"]
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- beta --------------------------------------------------------------------------------------------


def removed(beta: float, **more: Any) -> dict[str, float]:
    """Return which share of units and of branches a run removes."""
    loop = AwareLoop("residual", gate={"branches": True}, beta=beta, steps=60, **more).run()
    loop.aware.finish()
    lost: dict[str, list[bool]] = {"units": [], "branches": []}
    kinds = {group.name: group.kind for group in loop.gated.groups}
    for name, mask in loop.gated.keep.items():
        lost["branches" if kinds[name] == "branch" else "units"] += (~mask).tolist()
    return {kind: sum(gone) / len(gone) for kind, gone in lost.items()}


def test_units_only_and_layers_only() -> None:
    units, layers = removed(0.0, nu=3.0), removed(1.0, nu=30.0)
    assert units["branches"] == 0 < units["units"]
    assert layers["units"] == 0 < layers["branches"]


def test_a_low_beta_spares_layers_and_a_high_one_units() -> None:
    low, high = removed(0.02, nu=3.0), removed(0.98, nu=3.0)
    assert low["units"] > high["units"]
    assert low["branches"] <= high["branches"]
    assert high["branches"] == 1


def test_a_budget_is_met_by_what_may_leave() -> None:
    dense = AwareLoop("residual", gate={"branches": True}).gated
    name = next(group.name for group in dense.groups if group.kind == "branch")
    dense.set_keep({name: torch.tensor([False])})
    share = dense.cost().macs / dense.dense_cost.macs
    assert removed(1.0, macs=share) == {"units": 0, "branches": 1}
    assert removed(0.0, macs=share)["branches"] == 0
