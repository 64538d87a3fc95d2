"""What a controller refuses, what it survives, and what it says."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from controllers.loops import Loop, batch, build, differing, state_of
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers import AutoTrainOnce, EarlyFinishWarning, Schedule
from fxprune.errors import BudgetError, ConfigError
from fxprune.gated import GatedModule

STEPS = 20


@pytest.fixture(scope="module")
def shared() -> GatedModule:
    """A gated model that no refused controller may change."""
    return auto_gate(build("linear"), batch(0)[0]).train()


def attempt(gated: Any, **arguments: Any) -> AutoTrainOnce:
    given: dict[str, Any] = {"steps": STEPS, "macs": 0.5, **arguments}
    if "optimizer" not in given:
        given["optimizer"] = torch.optim.SGD(gated.parameters(), 0.1)
    return AutoTrainOnce(gated, **given)


# -- at construction ---------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """Holds a model in `.module`, as DistributedDataParallel and DataParallel do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def test_wrappers_of_a_gated_model_are_refused(shared: GatedModule) -> None:
    with pytest.raises(ConfigError, match=r"needs a gated model[\s\S]*Wrapper[\s\S]*its \.module"):
        attempt(Wrapper(shared))
    with pytest.raises(ConfigError, match=r"OptimizedModule[\s\S]*its \._orig_mod"):
        attempt(torch.compile(shared, backend="eager"))


@pytest.mark.parametrize(
    "model", [build("linear"), Wrapper(build("linear")), torch.fx.symbolic_trace(build("linear"))], ids=["plain", "wrapped", "graph"]
)  # fmt: skip
def test_models_without_gates_are_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"needs a gated model[\s\S]*auto_gate\(model\)"):
        attempt(model)


def test_what_is_no_model_is_refused(shared: GatedModule) -> None:
    optimizer = torch.optim.SGD(shared.parameters(), 0.1)
    for wrong in (None, 3, GatedModule):
        with pytest.raises(ConfigError, match="needs a gated model"):
            attempt(wrong, optimizer=optimizer)


def test_a_model_with_nothing_to_prune_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Nothing of this model can be pruned[\s\S]*gated\.frozen"
    ):
        attempt(auto_gate(nn.Linear(3, 2), torch.zeros(1, 3)))


def test_the_optimizer_must_be_of_the_gated_model(shared: GatedModule) -> None:
    original = build("linear")
    with pytest.raises(
        ConfigError, match=r"none of the gated model's parameters[\s\S]*copies the model"
    ):
        attempt(shared, optimizer=torch.optim.SGD(original.parameters(), 0.1))
    for wrong in (None, shared.parameters(), torch.optim.SGD):
        with pytest.raises(ConfigError, match=r"needs the torch\.optim\.Optimizer"):
            attempt(shared, optimizer=wrong)


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no budget": ({"macs": None}, ConfigError, "exactly one of 'macs' and 'params'"),
    "two budgets": ({"params": 0.5}, ConfigError, "exactly one of 'macs' and 'params'"),
    "budget 0": ({"macs": 0.0}, BudgetError, r"share in \(0, 1\]"),
    "budget above 1": ({"macs": 1.5}, BudgetError, r"share in \(0, 1\]"),
    "budget NaN": ({"macs": float("nan")}, BudgetError, r"share in \(0, 1\]"),
    "budget in words": ({"macs": "half"}, BudgetError, r"share in \(0, 1\]"),
    "unreachable": ({"macs": 1e-6}, BudgetError, "No keep-mask reaches macs=1e-06"),
    "unreachable in params": ({"macs": None, "params": 1e-6}, BudgetError, "No keep-mask reaches params"),
    "unreachable with blocks": ({"macs": 0.1, "round_to": 16}, BudgetError, "or lower round_to"),
    "no steps": ({"steps": 0}, ConfigError, "'steps' argument must be an integer >= 1"),
    "half a step": ({"steps": 10.5}, ConfigError, "'steps' argument"),
    "steps of True": ({"steps": True}, ConfigError, "'steps' argument"),
    "every 0": ({"every": 0}, ConfigError, "'every' argument must be an integer >= 1"),
    "seed -1": ({"seed": -1}, ConfigError, "'seed' argument must be an integer >= 0"),
    "seed None": ({"seed": None}, ConfigError, "'seed' argument"),
    "rate 0": ({"learning_rate": 0.0}, ConfigError, "'learning_rate' parameter must be a number above 0"),
    "rate NaN": ({"learning_rate": float("nan")}, ConfigError, "'learning_rate'"),
    "weight -1": ({"resource_weight": -1}, ConfigError, "'resource_weight'"),
    "weight infinite": ({"resource_weight": float("inf")}, ConfigError, "'resource_weight'"),
    "strength 0": ({"strength": 0}, ConfigError, "'strength'"),
    "strength in words": ({"strength": "10"}, ConfigError, "'strength'"),
    "projection": ({"projection": "l1"}, ConfigError, r"'projection' parameter must be one of \['half-space', 'proximal'\]"),
    "projection None": ({"projection": None}, ConfigError, "'projection' parameter"),
    "projection list": ({"projection": ["proximal"]}, ConfigError, "'projection' parameter"),
    "round_to 0": ({"round_to": 0}, ConfigError, "'round_to' parameter"),
    "schedule of numbers": ({"schedule": (0.1, 0.2, 0.5)}, ConfigError, "'schedule' parameter"),
    "schedule in words": ({"schedule": "paper"}, ConfigError, "'schedule' parameter"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused_and_leave_the_model_as_it_was(
    name: str, shared: GatedModule
) -> None:
    arguments, error, message = WRONG[name]
    before = {key: value.clone() for key, value in shared.state_dict().items()}
    random = torch.get_rng_state()
    with pytest.raises(error, match=message):
        attempt(shared, **arguments)
    assert differing(before, shared.state_dict()) == []
    assert shared.training
    assert shared._vector().soft is None
    assert torch.equal(torch.get_rng_state(), random)


def test_wrong_schedules_never_come_into_being() -> None:
    with pytest.raises(ConfigError, match=r"in order[\s\S]*search=0\.3, projection=0\.2"):
        attempt(None, schedule=Schedule(0.3, 0.2, 0.5))


def test_the_right_arguments_are_taken(shared: GatedModule) -> None:
    """Or the refusals above would show nothing."""
    attempt(shared)
    attempt(shared, macs=None, params=0.5, every=1, seed=0, learning_rate=1, strength=3)


# -- the held-back loss ------------------------------------------------------------------------------


def running(kind: str = "linear", **more: Any) -> Loop:
    """Return a loop whose next step takes a controller step, gates open."""
    loop = Loop(kind, steps=STEPS, every=1, schedule=Schedule(0, 0.8, 0.8), **more)
    loop.run(until=3)
    loop.train_weights()
    return loop


def logits(loop: Loop) -> Tensor:
    return loop.model(loop.input(batch(-1)[0]))


LOSSES: dict[str, tuple[Any, str]] = {
    "None": (lambda loop: None, r"one number that gradients can reach[\s\S]*NoneType"),
    "a number": (lambda loop: 0.3, "float"),
    "its number": (lambda loop: loop.held_back_loss().item(), "float"),
    "a vector": (lambda loop: F.cross_entropy(logits(loop), batch(-1)[1], reduction="none"), r"shape \(12,\)"),
    "logits": (logits, r"shape \(12, 3\)"),
    "nothing": (lambda loop: loop.held_back_loss()[None][:0], r"shape \(0,\)"),
    "detached": (lambda loop: loop.held_back_loss().detach(), "requires_grad=False"),
    "of weights only": (
        lambda loop: sum(p.square().sum() for p in loop.gated.parameters()),
        r"does not depend on the gates[\s\S]*that the controller was given",
    ),
    "of another model": (
        lambda loop: F.cross_entropy(build("linear")(batch(-1)[0]), batch(-1)[1]),
        "does not depend on the gates",
    ),
}  # fmt: skip


def without_gradient(loop: Loop) -> Tensor:
    with torch.no_grad():
        return loop.held_back_loss()


LOSSES["without gradients"] = (without_gradient, "computed with gradients enabled")


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_teach_nothing_are_refused(name: str) -> None:
    make, message = LOSSES[name]
    loop = running()
    check_survives(loop, lambda: make(loop), ConfigError, message)


def test_an_error_within_the_held_back_loss_leaves_everything_in_order() -> None:
    """BatchNorm's statistics were changed already, gates were soft."""
    loop = running("residual")
    seen = []

    def fail() -> Tensor:
        before = loop.gated.state_dict()["stem_norm.running_mean"].clone()
        loop.held_back_loss()
        assert loop.gated._vector().soft is not None
        seen.append(torch.equal(before, loop.gated.state_dict()["stem_norm.running_mean"]))
        raise MemoryError("no more memory")

    check_survives(loop, fail, MemoryError, "no more memory")
    assert seen == [False], "there was something to restore"


def check_survives(loop: Loop, make: Any, error: type[Exception], message: str) -> None:
    """Check that a failed step changes nothing but the count of steps, and that the run goes on."""
    assert loop.ato.due
    before = state_of(loop)
    gradients = {n: p.grad.clone() for n, p in loop.gated.named_parameters()}
    with pytest.raises(error, match=message):
        loop.ato.step(make)
    # The generator has moved on: a failed step's noise is not used again.
    assert set(differing(before, state_of(loop))) <= {"generator", "numbers"}
    assert all(torch.equal(p.grad, gradients[n]) for n, p in loop.gated.named_parameters())
    assert loop.gated._vector().soft is None
    assert loop.gated.training
    network = [p.detach().clone() for p in loop.ato.network.parameters()]
    loop.step()
    assert not all(
        torch.equal(p, q) for p, q in zip(loop.ato.network.parameters(), network, strict=True)
    )
    loop.run()
    assert loop.ato.finish().met


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_skipped_and_told(
    value: float, caplog: pytest.LogCaptureFixture
) -> None:
    loop = running()
    before = state_of(loop)
    with caplog.at_level(logging.WARNING, "fxprune"):
        loop.ato.step(lambda: loop.held_back_loss() * value)
    assert [r.getMessage() for r in caplog.records] == [
        "step 4: the held-back loss is not finite; skipped"
    ]
    assert set(differing(before, state_of(loop))) <= {"generator", "numbers"}
    assert loop.ato.steps_done == 4
    loop.run()
    assert loop.ato.finish().met
    assert all(bool(torch.isfinite(p).all()) for p in loop.ato.network.parameters())


def test_a_run_whose_every_loss_is_broken_still_meets_its_budget() -> None:
    loop = Loop("linear", steps=STEPS, every=1)
    while loop.ato.steps_done < STEPS:
        loop.train_weights()
        loop.ato.step(lambda: loop.held_back_loss() * float("nan"))
    assert loop.ato.finish().met


def test_a_loss_with_one_element_will_do() -> None:
    loop, other = running(), running()
    loop.ato.step(loop.held_back_loss)
    other.ato.step(lambda: other.held_back_loss().reshape(1, 1))
    assert differing(state_of(loop), state_of(other)) == []


def test_a_loss_is_not_asked_for_when_none_is_due() -> None:
    """Also one that would be refused."""
    loop = Loop("linear", steps=STEPS, every=3)
    while loop.ato.steps_done < STEPS:
        loop.train_weights()
        loop.ato.step(loop.held_back_loss if loop.ato.due else None)
    assert loop.ato.finish().met


# -- the end of a run --------------------------------------------------------------------------------


def test_finishing_early_points_at_the_caller() -> None:
    loop = Loop("linear", steps=STEPS).run(until=5)
    with pytest.warns(
        EarlyFinishWarning, match="finished after 5 of 20 steps.*need fine-tuning"
    ) as caught:
        loop.ato.finish()
    assert caught[0].filename == __file__
    assert loop.ato.finish().met
