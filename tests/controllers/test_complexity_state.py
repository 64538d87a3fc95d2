"""Stopping anywhere and going on in new objects, with what was cut out on the way."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from controllers.aware_loops import AwareLoop, state_of
from controllers.loops import batch, differing

from fxprune import verify
from fxprune.controllers import ComplexityAware
from fxprune.errors import LoadError

STEPS = 40
WAYS: dict[str, dict[str, Any]] = {
    "budget": {"kind": "linear", "macs": 0.3},
    "price, adamw": {"kind": "linear", "optimizer": "adamw", "nu": 1.0},
    "budget, shrinking": {"kind": "residual", "macs": 0.3, "shrink": True},
    "branches, shrinking, adamw": {
        "kind": "residual",
        "optimizer": "adamw",
        "macs": 0.3,
        "shrink": True,
        "gate": {"branches": True},
    },
}


def make(way: str, **more: Any) -> AwareLoop:
    return AwareLoop(**{"steps": STEPS, **WAYS[way], **more})


def checkpoint(loop: AwareLoop) -> bytes:
    """Return what a training script writes."""
    written = io.BytesIO()
    state = {
        "remaining": loop.gated.remaining,
        "model": loop.gated.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "aware": loop.aware.state_dict(),
        "losses": loop.losses,
    }
    torch.save(state, written)
    return written.getvalue()


def resume(loop: AwareLoop, written: bytes) -> AwareLoop:
    """Go on in a loop made anew from what was written, read without running any code."""
    state = torch.load(io.BytesIO(written), weights_only=True)
    loop.gated.shrink_to_(state["remaining"], loop.optimizer)
    loop.gated.load_state_dict(state["model"])
    loop.optimizer.load_state_dict(state["optimizer"])
    loop.aware.load_state_dict(state["aware"])
    loop.losses = list(state["losses"])
    return loop


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(way: str) -> None:
    whole, written = make(way), {}
    for step in (0, 2, *range(6, 16, 3), 24, STEPS):
        phase = whole.run(until=step).aware.phase
        written[phase, step] = (checkpoint(whole), state_of(whole))
    assert {phase for phase, _ in written} == {"warm-up", "search", "final"}
    chosen = whole.aware.finish()
    for (phase, step), (data, then) in written.items():
        loop = resume(make(way), data)
        assert loop.aware.phase == phase
        assert differing(state_of(loop), then) == [], f"{way}, loaded after {step}"
        assert differing(state_of(loop.run()), state_of(whole)) == [], f"{way}, from {step}"
        again = loop.aware.finish()
        assert np.array_equal(again.keep, chosen.keep)
        assert (again.reached, again.met, again.cost) == (chosen.reached, chosen.met, chosen.cost)


@pytest.mark.parametrize("way", ["budget, shrinking", "branches, shrinking, adamw"])
def test_a_run_that_shrinks_trains_what_one_that_does_not_trains(way: str) -> None:
    more = {"dtype": torch.float64, "steps": 2 * STEPS}
    small, whole = (make(way, shrink=shrink, **more) for shrink in (True, False))
    sizes = []
    while small.aware.steps_done < 2 * STEPS:
        small.step()
        whole.step()
        sizes.append(small.gated.plan.n_units)
        torch.testing.assert_close(small.losses[-1], whole.losses[-1], rtol=1e-9, atol=0)
        torch.testing.assert_close(small.aware.thetas(), whole.aware.thetas(), rtol=0, atol=1e-9)
    assert len(set(sizes)) > 2, "it did not shrink on the way"
    ends = [loop.aware.finish() for loop in (small, whole)]
    assert np.array_equal(ends[0].keep, ends[1].keep)
    assert ends[0].cost == ends[1].cost == small.gated.cost() == whole.gated.cost()
    assert small.aware.settled == whole.aware.settled
    x = batch(0)[0]
    assert verify(whole.gated.eval(), small.gated.eval().compact(), x.double()).passed
    params = sum(p.numel() for p in small.gated.parameters())
    assert params < sum(p.numel() for p in whole.gated.parameters())


def test_the_state_is_plain_data() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str)
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)
        else:
            assert value is None or isinstance(value, bool | int | float | str | torch.Tensor)

    for step in (0, 12, STEPS):
        check(make("branches, shrinking, adamw").run(until=step).aware.state_dict())


def test_taking_the_state_changes_nothing() -> None:
    loop, other = make("budget"), make("budget")
    while loop.aware.steps_done < STEPS:
        loop.aware.state_dict()
        loop.step()
    assert differing(state_of(loop), state_of(other.run())) == []


def test_a_state_taken_earlier_does_not_change_with_the_run() -> None:
    loop = make("budget").run(until=12)
    state = loop.aware.state_dict()
    before = {
        name: value.clone() for name, value in state["search"]["thetas"].items() if name != "cut"
    }
    loop.run()
    assert all(
        torch.equal(value, state["search"]["thetas"][name]) for name, value in before.items()
    )


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        ({"macs": 0.4}, "target is 0.3 there and 0.4 here"),
        ({"alpha": 0.5}, "alpha is 1.0 there and 0.5 here"),
        ({"beta": 0.1}, "beta is 0.5 there and 0.1 here"),
        ({"steps": 30}, "steps is 40 there and 30 here"),
        ({"shrink": True}, "shrink is False there and True here"),
        ({"kind": "residual"}, "units is"),
    ],
    ids=str,
)
def test_states_of_other_runs_are_refused(other: dict[str, Any], seen: str) -> None:
    state = make("budget").run(until=12).aware.state_dict()
    loop = make("budget", **other).run(until=3)
    before = state_of(loop)
    with pytest.raises(LoadError, match=seen):
        loop.aware.load_state_dict(state)
    assert differing(state_of(loop), before) == []


def test_a_state_of_a_shrunk_model_needs_the_shrunk_model() -> None:
    state = make("budget, shrinking").run().aware.state_dict()
    loop = make("budget, shrinking")
    with pytest.raises(LoadError, match=r"had been shrunk[\s\S]*shrink_to_\(remaining"):
        loop.aware.load_state_dict(state)
    assert loop.run().aware.finish().met


@pytest.mark.parametrize("wrong", [{}, {"settings": 3}, None])
def test_what_is_no_state_is_refused(wrong: Any) -> None:
    with pytest.raises(LoadError, match="no state of a ComplexityAware"):
        make("budget").aware.load_state_dict(wrong)


def test_a_damaged_state_changes_nothing() -> None:
    loop = make("budget").run(until=12)
    before, state = state_of(loop), make("budget").run(until=14).aware.state_dict()
    for damage in ("generator", "sample"):
        with pytest.raises(LoadError, match="state of a ComplexityAware is damaged"):
            loop.aware.load_state_dict({**state, damage: torch.zeros(3)})
        assert differing(state_of(loop), before) == []
    assert isinstance(loop.run().aware, ComplexityAware)
