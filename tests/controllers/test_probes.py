"""Steps that measure and do not learn."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from controllers.aware_loops import AwareLoop
from controllers.loops import OPTIMIZERS, differing

from fxprune.controllers.timing import Timing


def is_probe(loop: AwareLoop) -> bool:
    gates = loop.gated.sampled_gates
    return gates is not None and bool(((gates > 0) & (gates < 1)).any())


def learnt(loop: AwareLoop) -> dict[str, torch.Tensor]:
    """Return a copy of the weights and of all that the optimizer remembers of them."""
    found = {name: p.detach().clone() for name, p in loop.gated.named_parameters()}
    for number, parameter in enumerate(loop.gated.parameters()):
        for key, value in loop.optimizer.state.get(parameter, {}).items():
            found[f"{number}.{key}"] = torch.as_tensor(value).clone()
    return found


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_probe_leaves_weights_and_optimizer_alone(optimizer: str) -> None:
    loop = AwareLoop("linear", optimizer=optimizer)
    steps = {True: 0, False: 0}
    while loop.aware.phase != "final":
        probing, before = is_probe(loop), learnt(loop)
        loop.train_weights()
        changed = differing(before, learnt(loop))
        assert bool(changed) is not probing, f"step {loop.aware.steps_done}"
        loop.aware.step()
        steps[probing] += 1
    assert steps[True] >= 3
    assert steps[False] > steps[True]


def test_only_probes_explore() -> None:
    """Else open gates are open: nothing disturbs what the weights learn before anything leaves."""
    loop = AwareLoop("linear")
    while loop.aware.phase == "warm-up":
        gates = loop.gated.sampled_gates
        assert is_probe(loop) or bool((gates == 1).all())
        loop.step()
    while loop.aware.phase == "final" and loop.aware.steps_done < loop.aware.steps:
        assert not is_probe(loop)
        loop.step()


def test_a_controller_left_behind_holds_nothing_back() -> None:
    first = AwareLoop("linear")
    while not is_probe(first):
        first.step()
    second = AwareLoop("linear")
    second.gated, second.model, second.optimizer = first.gated, first.model, first.optimizer
    second.aware = type(first.aware)(first.gated, first.optimizer, steps=30, macs=0.5)
    assert not is_probe(second)
    before = learnt(second)
    second.train_weights()
    assert differing(before, learnt(second))


def test_a_copied_optimizer_and_one_after_the_end_step_as_ever() -> None:
    loop = AwareLoop("linear")
    while not is_probe(loop):
        loop.step()
    fresh = copy.deepcopy(loop.gated).train()
    other = OPTIMIZERS["sgd"](fresh.parameters())
    other.load_state_dict(loop.optimizer.state_dict())
    loop.gated, loop.model, loop.optimizer = fresh, fresh, other
    before = learnt(loop)
    loop.train_weights()
    assert differing(before, learnt(loop))


@pytest.mark.parametrize(
    ("steps", "least", "most"), [(60, 0.1, 0.34), (480, 0.05, 0.2), (100_000, 0.02, 0.05)]
)
def test_how_many_steps_are_probes(steps: int, least: float, most: float) -> None:
    timing = Timing(steps)
    probes = []
    for step in range(steps):
        if timing.phase(step) == "final":
            break
        if timing.explored(step):
            probes.append(step)
        if timing.began is None and timing.may_begin(step + 1, 0.0):
            timing.began = step + 1
    assert least <= len(probes) / step <= most
    assert probes[0] >= 0.05 * steps
    assert any(at >= timing.began for at in probes)
    assert all(timing.measures(at + 1) for at in probes)
    before = [at for at in probes if at < timing.began]
    assert {3 <= b - a <= 20 for a, b in itertools.pairwise(before)} == {True}
