"""Auto-Train-Once cuts closed units out when masks are fixed, and the run ends as it would have."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from controllers.loops import Loop, batch
from torch import nn

import fxprune
from fxprune.controllers import Schedule
from fxprune.errors import LoadError

STEPS = 24
TIGHT = 1e-9


def make(kind: str, optimizer: str = "sgd", **more: Any) -> Loop:
    loop = Loop(
        kind,
        optimizer=optimizer,
        dtype=torch.float64,
        **{"steps": STEPS, "schedule": Schedule(0.2, 0.3, 0.5), "clip": 1.0, **more},
    )
    for module in loop.gated.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # fewer channels take fewer random numbers
    return loop


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", ["residual", "depthwise", "two modes", "linear"])
def test_a_run_that_shrinks_ends_like_one_that_does_not(kind: str, optimizer: str) -> None:
    masked, small = (make(kind, optimizer, shrink=s).run() for s in (False, True))
    torch.testing.assert_close(small.losses, masked.losses, rtol=TIGHT, atol=0)
    assert small.gated.plan.n_units == int(masked.ato.selection.keep.sum())
    assert (small.ato.selection.keep == masked.ato.selection.keep).all()
    assert small.ato.finish().cost == masked.ato.finish().cost == small.gated.cost()
    assert small.ato.expected == masked.ato.expected
    x = small.input(batch(0)[0])
    compact, expected = small.gated.eval().compact(), masked.gated.eval().compact()
    scale = expected(x).abs().max().item()
    torch.testing.assert_close(compact(x), expected(x), rtol=0, atol=TIGHT * scale)
    fxprune.verify(small.gated, compact, x)


def test_it_shrinks_when_masks_are_fixed_and_not_before() -> None:
    loop = make("residual", shrink=True)
    units = loop.gated.plan.n_units
    sizes = []
    while loop.ato.steps_done < STEPS:
        loop.step()
        sizes.append(loop.gated.plan.n_units)
    fixed = sizes.index(min(sizes))
    assert sizes == [units] * fixed + [sizes[-1]] * (STEPS - fixed)
    assert fixed + 1 == STEPS // 2
    assert make("residual").run().gated.plan.n_units == units


def test_a_state_asks_for_a_model_of_its_size() -> None:
    loop = make("residual", shrink=True).run(STEPS - 4)
    state = copy.deepcopy(loop.ato.state_dict())
    fresh = make("residual", shrink=True)
    before = fresh.ato.state_dict()["steps_done"]
    with pytest.raises(LoadError, match="a model that had been shrunk") as caught:
        fresh.ato.load_state_dict(state)
    assert "gated.shrink_to_(remaining, optimizer)" in caught.value.hint
    assert fresh.ato.state_dict()["steps_done"] == before
    with pytest.raises(LoadError, match="belongs to another run"):
        make("residual").ato.load_state_dict(state)
    fresh.gated.shrink_to_(loop.gated.remaining, fresh.optimizer)
    fresh.gated.load_state_dict(loop.gated.state_dict())
    fresh.optimizer.load_state_dict(copy.deepcopy(loop.optimizer.state_dict()))
    fresh.ato.load_state_dict(state)
    fresh.losses = list(loop.losses)
    assert fresh.run().losses == loop.run().losses
