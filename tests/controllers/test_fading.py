"""What the final masks cut has faded before: the network that is trained on is the one there was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from controllers.loops import Loop, batch, build, held_back

from fxprune import auto_gate
from fxprune.controllers import Schedule
from fxprune.controllers.masks import best_units, open_units

PACED = Schedule(search=0.1, projection=0.3, final=0.7, pace=0.8)


def run_to_the_last_step_before_masks(schedule: Schedule) -> Loop:
    """Train with a controller that learns next to nothing, so that its gates lag behind."""
    loop = Loop(
        "depthwise", optimizer="rmsprop", steps=60, macs=0.3, schedule=schedule, learning_rate=1e-6
    )
    return loop.run(until=schedule.start("final", 60) - 1)


def change_by_the_masks(loop: Loop) -> float:
    """Return how much the loss on other images changes when masks become fixed."""
    loop.model.eval()
    before = float(loop.loss(held_back(100)).detach())
    loop.ato.step(loop.held_back_loss)
    assert loop.ato.phase == "final"
    assert loop.ato.selection is not None
    after = float(loop.loss(held_back(100)).detach())
    return abs(after - before) / before


def test_fixing_the_masks_does_not_change_the_function() -> None:
    loop = run_to_the_last_step_before_masks(PACED)
    assert loop.ato.expected > 0.9  # the gates themselves would keep all
    assert change_by_the_masks(loop) < 1e-3


def test_without_a_pace_only_what_the_gates_close_fades() -> None:
    loop = run_to_the_last_step_before_masks(Schedule(search=0.1, projection=0.3, final=0.7))
    assert not loop.ato._pressure.norms().any()
    assert change_by_the_masks(loop) > 0.05


def test_open_units_are_those_above_the_bias_and_the_best_of_every_group() -> None:
    gated = auto_gate(build("depthwise"), batch(0)[0])
    logits = np.linspace(-3.5, -2.5, gated.plan.n_units)
    keep = open_units(gated, logits)
    expected = logits + 3 > 0
    for at in gated.plan.group_slices().values():
        expected[at.stop - 1] = True
    assert np.array_equal(keep, expected)


@pytest.mark.parametrize("resource", ["macs", "params"])
def test_best_units_are_within_the_budget_and_ranked_by_their_logits(resource: str) -> None:
    gated = auto_gate(build("depthwise"), batch(0)[0])
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(gated.plan.n_units)
    keep = best_units(gated, logits, resource, 0.4, 1)
    dense = getattr(gated.cost_of(np.ones(gated.plan.n_units, dtype=bool)), resource)
    assert getattr(gated.cost_of(keep), resource) / dense == pytest.approx(0.4, rel=0.01)
    for at in gated.plan.group_slices().values():
        kept, cut = logits[at][keep[at]], logits[at][~keep[at]]
        assert not len(cut) or kept.min() > cut.max()
    torch.testing.assert_close(gated.keep, {k: torch.ones_like(v) for k, v in gated.keep.items()})
