"""The promise, on random networks: gated(x) == compact(x) for any mask, in both modes, at the cost predicted."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from gate_checks import (
    assert_close,
    assert_cost,
    assert_equal_to_compact,
    assert_partition,
    assert_state_is_sliced,
    keep_vector,
    no_dropout,
    random_keep,
    run,
)
from random_nets import describe, random_net
from torch import Tensor, nn

from fxprune.api import auto_gate
from fxprune.gated import GatedModule

SHARES = (0.2, 0.5, 0.85)
SEEDS = [
    *range(50),
    *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(50, 500)),
]


@contextmanager
def described(model: nn.Module) -> Iterator[None]:
    """Print the program of a network whose test fails."""
    try:
        yield
    except Exception:
        print(describe(model))  # noqa: T201 - pytest shows it with the failure
        raise


def gated_net(seed: int) -> tuple[GatedModule, Tensor]:
    model, x = random_net(seed)
    return auto_gate(model, x), x


@pytest.mark.parametrize("seed", SEEDS)
def test_compact_equals_gated(seed: int) -> None:
    model, x = random_net(seed)
    with described(model):
        gated = auto_gate(model, x)
        assert_partition(gated)
        assert_close(run(gated, x), run(model, x), "open gates against the original")
        for number, share in enumerate(SHARES):
            gated.set_keep(random_keep(gated, share, 10 * seed + number))
            compact = assert_equal_to_compact(gated, x)
            assert_cost(gated, compact, x)


@pytest.mark.parametrize("seed", SEEDS)
def test_branches_go_as_well(seed: int) -> None:
    """The same with masks of branches among those of channels, in both modes."""
    model, x = random_net(seed)
    no_dropout(model)
    with described(model):
        gated = auto_gate(model, x, branches=True)
        if all(group.kind != "branch" for group in gated.groups):
            return
        assert_partition(gated)
        assert_close(run(gated, x), run(model, x), "open gates against the original")
        for number, share in enumerate(SHARES):
            gated.set_keep(random_keep(gated, share, 10 * seed + number))
            compact = assert_equal_to_compact(gated, x)
            assert_cost(gated, compact, x)
        compact, trained = gated.compact().train(), copy.deepcopy(gated).train()
        assert_close(run(compact, x), run(trained, x), "compact against gated")
        assert_state_is_sliced(trained, compact)


@pytest.mark.parametrize("seed", SEEDS)
def test_training_equals_too(seed: int) -> None:
    """In train mode the outputs agree, and so do the statistics that BatchNorm gathers of what is kept."""
    model, x = random_net(seed)
    no_dropout(model)
    with described(model):
        gated = auto_gate(model, x)
        original, opened = copy.deepcopy(model).train(), copy.deepcopy(gated).train()
        assert_close(run(opened, x), run(original, x), "open gates against the original")
        for name, tensor in original.state_dict().items():
            if name in opened.state_dict():
                torch.testing.assert_close(opened.state_dict()[name], tensor, rtol=0, atol=1e-12)
        gated.set_keep(random_keep(gated, 0.5, seed))
        compact, trained = gated.compact().train(), copy.deepcopy(gated).train()
        before = copy.deepcopy(gated.state_dict())
        assert_close(run(compact, x), run(trained, x), "compact against gated")
        assert_state_is_sliced(trained, compact)
        assert all(torch.equal(t, before[name]) for name, t in gated.state_dict().items())


def by_group(gated: GatedModule, keep: np.ndarray) -> dict[str, Tensor]:
    return {name: torch.from_numpy(keep[at]) for name, at in gated.plan.group_slices().items()}


def further_masks(
    once: GatedModule, twice: GatedModule, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a further mask for a pruned model and its pruned form at once, so that both mean the same.

    `twice` is made of what `once` keeps. It may tie more than `once` does (an axis of width 1 is no
    axis of channels any more): where it cannot follow, more is kept.
    """
    first = keep_vector(once)
    axes = []
    for key, ids in once.plan.axes.items():
        ids = ids[once.plan.kept(ids, first)]
        new = twice.plan.axes.get(key)
        none = np.full((len(ids), 1), twice.plan.n_units)
        axes.append((once.plan.units[ids], none if new is None else twice.plan.units[new]))
    generator = np.random.default_rng(seed)
    old = np.append(first & (generator.random(len(first)) < 0.6), True)
    for at in once.plan.group_slices().values():
        old[generator.choice(np.flatnonzero(first[at])) + at.start] = True
    while True:
        new = np.zeros(twice.plan.n_units + 1, dtype=bool)
        for before, after in axes:
            new[after[old[before].all(axis=1)]] = True
        new[-1] = True
        for at in twice.plan.group_slices().values():
            new[at.start] |= not new[at].any()
        extra = [
            before[~old[before].all(axis=1) & new[after].all(axis=1)].ravel()
            for before, after in axes
        ]
        if not any(map(len, extra)):
            return old[:-1], new[:-1]
        old[np.concatenate(extra)] = True


@pytest.mark.parametrize("seed", SEEDS)
def test_pruning_twice_is_pruning_the_union(seed: int) -> None:
    model, x = random_net(seed)
    with described(model):
        once = auto_gate(model, x)
        once.set_keep(random_keep(once, 0.7, seed))
        twice = auto_gate(once.compact(), x)
        union, rest = further_masks(once, twice, seed)
        once.set_keep(by_group(once, union))
        twice.set_keep(by_group(twice, rest))
        small, same = twice.compact(), once.compact()
        assert_close(run(small, x), run(same, x), "pruned twice against pruned once")
        tensors = same.state_dict()
        for name, tensor in small.state_dict().items():
            assert torch.equal(tensor, tensors[name]), name
        assert twice.cost() == once.cost()


def test_the_second_pruning_removes_something() -> None:
    """Guards `further_masks`, which gives way where the second analysis cannot follow."""
    shares = []
    for seed in range(10):
        model, x = random_net(seed)
        once = auto_gate(model, x)
        once.set_keep(random_keep(once, 0.7, seed))
        first = keep_vector(once)
        union, _ = further_masks(once, auto_gate(once.compact(), x), seed)
        shares.append(union.sum() / first.sum())
    assert sum(shares) / len(shares) < 0.8


def test_a_changed_weight_is_noticed() -> None:
    """The comparison itself must be able to fail."""
    gated, x = gated_net(0)
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    with torch.no_grad():
        next(compact.parameters()).flatten()[0] += 1e-4
    with pytest.raises(AssertionError, match="compact against gated"):
        assert_close(run(compact, x), run(gated, x), "compact against gated")
    with pytest.raises(AssertionError, match="weight"):
        assert_state_is_sliced(gated, compact)
