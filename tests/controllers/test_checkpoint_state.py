"""Stopping anywhere and going on in new objects, as a resumed process does."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from controllers.loops import Loop, differing, state_of

from fxprune.controllers import Schedule
from fxprune.errors import LoadError

STEPS = 20
SCHEDULE = Schedule(0.2, 0.4, 0.6)
POINTS = {"warm-up": 2, "search": 7, "projection": 10, "first of final": 12, "final": 15, "end": 20}
WAYS: dict[str, dict[str, Any]] = {
    "proximal, sgd": {"kind": "linear"},
    # Seldom: what is remembered is then older than the weights at some of the points.
    "half-space, adamw": {
        "kind": "linear",
        "projection": "half-space",
        "optimizer": "adamw",
        "every": 5,
        "learning_rate": 0.05,
    },
    "half-space, adam, shrinking": {
        "kind": "two modes",
        "projection": "half-space",
        "optimizer": "adam",
        "shrink": True,
    },
    "depthwise, half-space, one cycle": {
        "kind": "depthwise",
        "projection": "half-space",
        "scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    },
}  # fmt: skip


def make(way: str = "proximal, sgd", **more: Any) -> Loop:
    arguments = {"steps": STEPS, "every": 2, "schedule": SCHEDULE, **WAYS[way], **more}
    return Loop(**arguments)


def checkpoint(loop: Loop) -> bytes:
    """Return what a training script writes."""
    written = io.BytesIO()
    state = {
        "remaining": loop.gated.remaining,
        "model": loop.gated.state_dict(),
        "optimizer": loop.optimizer.state_dict(),
        "scheduler": None if loop.scheduler is None else loop.scheduler.state_dict(),
        "ato": loop.ato.state_dict(),
        "random": torch.get_rng_state(),
        "losses": loop.losses,
    }
    torch.save(state, written)
    return written.getvalue()


def resume(loop: Loop, written: bytes) -> Loop:
    """Go on in a loop made anew from what was written, read without running any code."""
    state = torch.load(io.BytesIO(written), weights_only=True)
    loop.gated.shrink_to_(state["remaining"], loop.optimizer)
    loop.gated.load_state_dict(state["model"])
    loop.optimizer.load_state_dict(state["optimizer"])
    if loop.scheduler is not None:
        loop.scheduler.load_state_dict(state["scheduler"])
    loop.ato.load_state_dict(state["ato"])
    torch.set_rng_state(state["random"])
    loop.losses = list(state["losses"])
    return loop


# -- going on ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_run_ends_as_one_that_was_never_stopped(way: str) -> None:
    """Bit for bit, from every phase; each time in objects that have seen nothing of the run."""
    whole = make(way)
    written = {}
    for name, step in POINTS.items():
        written[name] = (checkpoint(whole.run(until=step)), state_of(whole))
    end = written["end"][1]
    assert whole.ato.finish().met
    for name, (data, then) in written.items():
        loop = resume(make(way), data)
        assert differing(state_of(loop), then) == [], f"{way}, loaded in {name}"
        assert loop.ato.phase == SCHEDULE.phase(POINTS[name], STEPS)
        assert (loop.ato.selection is None) == (POINTS[name] < POINTS["first of final"])
        assert differing(state_of(loop.run()), end) == [], f"{way}, from {name}"
        chosen, expected = loop.ato.finish(), whole.ato.finish()
        assert np.array_equal(chosen.keep, expected.keep)
        assert (chosen.reached, chosen.met, chosen.cost) == (
            expected.reached,
            expected.met,
            expected.cost,
        )
        assert (
            differing(loop.gated.compact().state_dict(), whole.gated.compact().state_dict()) == []
        )


@pytest.mark.parametrize("way", ["proximal, sgd", "half-space, adamw"])
def test_a_controller_that_was_used_can_go_back(way: str) -> None:
    """As where a run that went astray starts again from an earlier checkpoint."""
    loop = make(way)
    written = {step: checkpoint(loop.run(until=step)) for step in (2, 9, 15)}
    end = state_of(loop.run())
    for data in written.values():
        assert differing(state_of(resume(loop, data).run()), end) == []


def test_a_state_that_was_taken_early_holds_no_later_closed_units() -> None:
    early, late = make(), make().run(until=11)
    before = early.ato.state_dict()
    late.ato.load_state_dict(before)
    assert torch.equal(late.ato.state_dict()["pressure"]["closed"], before["pressure"]["closed"])
    assert not late.ato.state_dict()["pressure"]["closed"].any()


def test_the_state_is_plain_data() -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str | int)
                check(item)
        elif isinstance(value, list | tuple):
            for item in value:
                check(item)
        else:
            assert value is None or isinstance(value, bool | int | float | str | torch.Tensor), (
                value
            )

    for step in (0, 10, 14):
        for way in ("proximal, sgd", "half-space, adamw"):
            check(make(way).run(until=step).ato.state_dict())


def test_taking_the_state_changes_nothing() -> None:
    loop, other = make("half-space, adamw"), make("half-space, adamw")
    while loop.ato.steps_done < STEPS:
        loop.step()
        other.step()
        copy.deepcopy(loop.ato.state_dict())
    assert differing(state_of(loop), state_of(other)) == []


def test_noise_goes_on_where_it_was() -> None:
    """Were the generator made anew, the resumed run would see the first noise again."""
    loop = make().run(until=7)
    data = checkpoint(loop)
    resumed = resume(make(), data)
    resumed.ato._generator.manual_seed(0)
    assert differing(state_of(resumed.run()), state_of(loop.run())) != []


# -- what is refused ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway() -> Loop:
    """A run in its final phase, which what is refused does not change."""
    return make().run(until=15)


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """A state that could be loaded: of an equal run with other random numbers."""
    return make(seed=1).run(until=13).ato.state_dict()


def everything(loop: Loop) -> dict[str, torch.Tensor]:
    state = loop.ato.state_dict()["pressure"]
    return {
        **state_of(loop),
        "closed": state["closed"],
        "final calls": torch.tensor(state["final_calls"]),
        **{f"remembered {i}": t.clone() for i, t in enumerate(state["projection"])},
    }


def test_the_good_state_would_be_loaded(good: dict[str, Any]) -> None:
    """Or what follows would show nothing."""
    loop = make().run(until=15)
    before = everything(loop)
    loop.ato.load_state_dict(copy.deepcopy(good))
    changed = differing(before, everything(loop))
    assert {"generator", "numbers", "closed", "mask embed", "network norm.weight"} <= set(changed)


WRONG: dict[str, tuple[Callable[[], Loop], str]] = {
    "another length": (lambda: make(steps=STEPS + 1), "steps is 21 there and 20 here"),
    "another budget": (lambda: make(macs=0.4), "target is 0.4 there and 0.5 here"),
    "another resource": (lambda: make(params=0.5), "resource is 'params' there and 'macs' here"),
    "another rate": (lambda: make(learning_rate=0.02), "rate is 0.02 there and 0.01 here"),
    "another rhythm": (lambda: make(every=3), "every is 3 there and 2 here"),
    "another schedule": (lambda: make(schedule=Schedule()), "schedule is"),
    "another pace": (lambda: make(schedule=Schedule(0.2, 0.4, 0.6, pace=0.5)), "schedule is"),
    "another weight": (lambda: make(resource_weight=2.0), "resource_weight is 2.0 there"),
    "another projection": (lambda: make(projection="half-space"), "pressure is"),
    "another strength": (lambda: make(strength=3.0), "pressure is"),
    "another rounding": (lambda: make(round_to=2), "round_to is 2 there and 1 here"),
    "another model": (lambda: make(kind="residual"), "groups is"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_state_of_another_run_is_refused(wrong: str, halfway: Loop) -> None:
    build, message = WRONG[wrong]
    loop = halfway
    before, selection = everything(loop), loop.ato.selection
    state = build().ato.state_dict()
    with pytest.raises(LoadError, match=message) as caught:
        loop.ato.load_state_dict(state)
    assert caught.value.hint
    assert differing(everything(loop), before) == []
    assert loop.ato.selection is selection
    assert loop.gated._vector().soft is None


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        del state[key]

    return change


def with_value(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[key] = value

    return change


def inside(key: str, inner: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(state: dict[str, Any]) -> None:
        state[key][inner] = value

    return change


DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    **{f"no {key}": without(key) for key in ("settings", "network", "optimizer", "generator", "steps_done", "expected", "pressure", "keep")},
    "settings are a list": with_value("settings", [1, 2]),
    "settings are None": with_value("settings", None),
    "a weight is missing": lambda state: state["network"].pop("norm.weight"),
    "a weight has another shape": inside("network", "norm.bias", torch.zeros(3)),
    "a weight is a number": inside("network", "norm.bias", 1.0),
    "the optimizer is empty": with_value("optimizer", {}),
    "the optimizer is of another network": with_value(
        "optimizer", torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    ),
    "the generator is cut off": with_value("generator", torch.zeros(8, dtype=torch.uint8)),
    "steps_done is a word": with_value("steps_done", "many"),
    "masks are too short": with_value("keep", torch.ones(3, dtype=torch.bool)),
    "masks are numbers": with_value("keep", 7),
    "closed units are too few": inside("pressure", "closed", torch.ones(3, dtype=torch.bool)),
    "nothing is known of the projection": lambda state: state["pressure"].pop("projection"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_state_is_refused_and_changes_nothing(
    damage: str, halfway: Loop, good: dict[str, Any]
) -> None:
    """Damage that torch.load cannot see, such as a file merged from two."""
    state = copy.deepcopy(good)
    DAMAGE[damage](state)
    before, selection = everything(halfway), halfway.ato.selection
    with pytest.raises(LoadError):
        halfway.ato.load_state_dict(state)
    assert differing(everything(halfway), before) == []
    assert selection is not None
    assert halfway.ato.selection is not None
    assert np.array_equal(halfway.ato.selection.keep, selection.keep)


@pytest.mark.parametrize(
    "foreign",
    [{}, None, 3, [], "state", {"state_dict": {}}, {"settings": "x"}, torch.nn.Linear(2, 2).state_dict()],
    ids=["empty", "None", "number", "list", "word", "dict", "settings", "model"],
)  # fmt: skip
def test_what_is_no_state_is_refused(foreign: Any, halfway: Loop) -> None:
    before = everything(halfway)
    with pytest.raises(LoadError, match="no state of an AutoTrainOnce"):
        halfway.ato.load_state_dict(foreign)
    assert differing(everything(halfway), before) == []
