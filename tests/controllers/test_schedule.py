"""The phases of a run."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from fxprune.controllers import Schedule
from fxprune.controllers.schedule import PAPER_EVERY
from fxprune.errors import ConfigError

PHASES = ("warm-up", "search", "projection", "final")


def test_the_default_phases_are_those_of_the_paper() -> None:
    schedule = Schedule()
    assert (schedule.search, schedule.projection, schedule.final) == (0.1, 0.2, 0.5)
    assert [schedule.start(phase, 1000) for phase in PHASES] == [0, 100, 200, 500]
    assert PAPER_EVERY == 20


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 60, 99, 1000])
@pytest.mark.parametrize(
    "schedule",
    [Schedule(), Schedule(0, 0, 0.5), Schedule(0, 0.9, 0.9), Schedule(0.3, 0.5, 0.99)],
    ids=str,
)
def test_phases_come_in_order_and_start_where_they_say(schedule: Schedule, steps: int) -> None:
    seen = [schedule.phase(step, steps) for step in range(2 * steps)]
    assert sorted(seen, key=PHASES.index) == seen
    assert seen[-1] == "final"
    for phase in PHASES:
        here = [step for step, p in enumerate(seen) if p == phase]
        if here:
            assert here[0] == schedule.start(phase, steps)


def test_a_run_that_starts_at_once_has_no_warm_up() -> None:
    assert Schedule(0, 0, 0.5).phase(0, 10) == "projection"
    assert Schedule(0, 0.2, 0.5).phase(0, 10) == "search"


def test_long_runs_have_the_controller_of_the_paper() -> None:
    schedule = Schedule()
    assert schedule.every(10**6) == 20
    assert schedule.rate(10**6, 20) == pytest.approx(1e-3)


def test_short_runs_have_a_controller_that_works_more() -> None:
    schedule = Schedule()
    lengths = [1, 10, 100, 1000, 10_000, 100_000, 10**6]
    every = [schedule.every(steps) for steps in lengths]
    rates = [schedule.rate(steps, e) for steps, e in zip(lengths, every, strict=True)]
    assert every == sorted(every)
    assert every[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]
    assert all(isinstance(e, int) for e in every)


@pytest.mark.parametrize(
    "wrong",
    [
        {"search": 0.3},
        {"projection": 0.05},
        {"projection": 0.6},
        {"final": 0.15},
        {"final": 1.0},
        {"final": 1},
        {"search": -0.1},
        {"search": 0.5, "projection": 0.5},
        {"search": 0.0, "projection": 0.0, "final": 0.0},
        {"search": float("nan")},
        {"projection": float("nan")},
        {"final": float("inf")},
        {"search": False},
        {"search": "0.1"},
        {"final": None},
    ],
    ids=str,
)
def test_wrong_schedules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="shares of the run, in order"):
        Schedule(**wrong)


# -- the pace of the target --------------------------------------------------------------------------


def test_without_a_pace_all_is_asked_at_once() -> None:
    schedule = Schedule()
    assert schedule.pace == 0.0
    assert [schedule.target(step, 1000, 0.3) for step in (0, 100, 101, 400, 900)] == [0.3] * 5


@pytest.mark.parametrize("pace", [0.25, 0.9, 1.0])
@pytest.mark.parametrize("target", [0.02, 0.5, 1.0])
def test_a_paced_target_falls_geometrically_to_what_was_asked(pace: float, target: float) -> None:
    schedule = Schedule(0.1, 0.2, 0.6, pace)
    asked = [schedule.target(step, 1000, target) for step in range(1001)]
    arrived = 100 + round(pace * 500)
    assert asked[:101] == [1.0] * 101, "nothing before the search"
    assert asked[arrived:] == [target] * (1001 - arrived), "all by the pace's share of the search"
    factors = [b / a for a, b in itertools.pairwise(asked[100 : arrived + 1])]
    assert factors == pytest.approx([target ** (1 / (pace * 500))] * len(factors), rel=1e-9)


@pytest.mark.parametrize("pace", [-0.1, 1.1, float("nan"), None, True])
def test_a_wrong_pace_is_refused(pace: Any) -> None:
    with pytest.raises(ConfigError, match=rf"shares of the run[\s\S]*pace={pace!r}"):
        Schedule(pace=pace)


def test_a_run_as_long_as_the_paper_s_gets_its_schedule() -> None:
    assert Schedule.for_run(10**6) == Schedule()
    for steps in (1, 10, 1000, 10_000):
        schedule = Schedule.for_run(steps)
        assert schedule.target(schedule.start("final", steps), steps, 0.1) == pytest.approx(0.1)
