"""The reshape algebra against brute force: what is kept of a tensor, element by element, before and after.

A reshape moves no element, so whatever is kept, the kept elements before and after must be the same:
``kept(new) == kept(old).reshape(new)``, where an element is kept when its position on every axis is.
"""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.analysis.axes import AxisIds, TensorIds, concat_ids, none_ids, reshape_ids
from fxprune.analysis.ids import ALWAYS, Ids, IdSpace, Owner, Resolution


def fresh(space: IdSpace, count: int) -> Ids:
    return space.fresh(count, Owner("weight", 0, "parameter"))


def resolve(space: IdSpace) -> Resolution:
    return space.resolve(np.ones(len(space), dtype=bool))


def kept(
    resolution: Resolution, keep: np.ndarray, ids: TensorIds, shape: tuple[int, ...]
) -> np.ndarray:
    """Return which elements of a tensor are kept, materialised, shape `shape`."""
    full = np.append(keep, True)
    box = np.ones(shape, dtype=bool)
    for dim, axis in enumerate(ids):
        if axis is not None:
            alive = full[resolution.units[axis]].all(axis=1)
            box &= alive.reshape([-1 if d == dim else 1 for d in range(len(shape))])
    return box


def assert_same_elements(
    space: IdSpace, old: tuple[TensorIds, tuple[int, ...]], new: tuple[TensorIds, tuple[int, ...]]
) -> Resolution:
    resolution = resolve(space)
    generator = np.random.default_rng(0)
    keeps = [generator.random(resolution.n_units) < share for share in (0.2, 0.5, 0.5, 0.8)]
    keeps += [~row for row in np.eye(resolution.n_units, dtype=bool)]
    for keep in keeps:
        before, after = kept(resolution, keep, *old), kept(resolution, keep, *new)
        assert np.array_equal(before.reshape(new[1]), after)
    return resolution


def ordered_factors(n: int, rng: random.Random) -> tuple[int, ...]:
    """Split a number into random factors, in random order, with some ones."""
    left, factors = n, []
    while left > 1:
        factor = rng.choice([d for d in range(2, left + 1) if left % d == 0])
        factors.append(factor)
        left //= factor
    for _ in range(rng.randint(0, 2)):
        factors.insert(rng.randint(0, len(factors)), 1)
    return tuple(factors) or (1,)


def random_axis(space: IdSpace, width: int, rng: random.Random, fixed: bool) -> AxisIds:
    """Draw ids for an axis: none, all different, repeated, tiled, all one, or partly fixed."""
    kind = rng.choice(["none", "fresh", "fresh", "repeat", "tile", "one", "fixed"])
    if kind == "fixed" and not fixed:
        kind = "fresh"
    if kind == "none" or width == 1:
        return None
    inner = rng.choice([d for d in range(1, width + 1) if width % d == 0])
    if kind == "repeat":
        return np.repeat(fresh(space, inner), width // inner)
    if kind == "tile":
        return np.tile(fresh(space, inner), width // inner)
    if kind == "one":
        return np.repeat(fresh(space, 1), width)
    made = fresh(space, width)
    if kind == "fixed":
        at = rng.randrange(width)
        made[at : at + rng.randint(1, width)] = ALWAYS
    return made if made.any() else None


# -- brute force -----------------------------------------------------------------------------------------------


def check_chain(seed: int, *, fixed: bool) -> None:
    """Reshape random ids a few times and compare what is kept before and after each."""
    rng = random.Random(seed)
    total = rng.choice([4, 6, 8, 12, 12, 16, 24, 24, 36])
    shape = ordered_factors(total, rng)
    space = IdSpace()
    ids: TensorIds = tuple(random_axis(space, width, rng, fixed) for width in shape)
    steps = [(ids, shape)]
    for _ in range(rng.randint(1, 3)):
        new = ordered_factors(total, rng)
        steps.append((reshape_ids(space, steps[-1][0], steps[-1][1], new, "view"), new))
    for before, after in itertools.pairwise(steps):
        assert [None if a is None else len(a) for a in after[0]] == [
            None if a is None else width for a, width in zip(after[0], after[1], strict=True)
        ]
        assert_same_elements(space, before, after)


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_a_chain_of_reshapes_keeps_the_same_elements(seed: int) -> None:
    check_chain(seed, fixed=False)


@settings(max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_even_where_part_of_an_axis_is_fixed(seed: int) -> None:
    check_chain(seed, fixed=True)


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1))
def test_merging_then_splitting_again_gives_the_axes_back(seed: int) -> None:
    rng = random.Random(seed)
    shape = tuple(rng.choices([2, 3, 4, 5], k=rng.randint(1, 2)))
    space = IdSpace()
    ids: TensorIds = tuple(fresh(space, width) if rng.random() < 0.7 else None for width in shape)
    flat = reshape_ids(space, ids, shape, (math.prod(shape),), "flatten")
    back = reshape_ids(space, flat, (math.prod(shape),), shape, "unflatten")
    resolution = assert_same_elements(space, (ids, shape), (back, shape))
    assert resolution.n_units == sum(
        w for w, axis in zip(shape, ids, strict=True) if axis is not None
    )
    for one, other in zip(ids, back, strict=True):
        if one is None or len(one) == 1:
            continue
        assert other is not None
        assert np.array_equal(resolution.units[one], resolution.units[other])


# -- what each case gives --------------------------------------------------------------------------------------


def ids_of(space: IdSpace, result: TensorIds) -> list[list[int] | None]:
    return [None if axis is None else space.find(axis).tolist() for axis in result]


def test_axes_of_width_1_come_and_go() -> None:
    space = IdSpace()
    a = fresh(space, 4)
    assert ids_of(space, reshape_ids(space, (None, a), (2, 4), (2, 1, 4, 1), "view")) == [
        None,
        None,
        a.tolist(),
        None,
    ]
    assert resolve(space).n_units == 4


def test_flattening_pixels_repeats_the_channel() -> None:
    space = IdSpace()
    a = fresh(space, 3)
    result = reshape_ids(space, (None, a, None, None), (2, 3, 2, 2), (2, 12), "flatten")
    assert ids_of(space, result) == [None, np.repeat(a, 4).tolist()]
    back = reshape_ids(space, result, (2, 12), (2, 3, 2, 2), "unflatten")
    assert ids_of(space, back) == [None, a.tolist(), None, None]
    assert resolve(space).n_units == 3


def test_merging_with_an_axis_in_front_tiles_the_channel() -> None:
    space = IdSpace()
    a = fresh(space, 3)
    (result,) = reshape_ids(space, (None, a), (2, 3), (6,), "flatten")
    assert result is not None
    assert result.tolist() == [*a, *a]


@pytest.mark.parametrize("sizes", [(2, 4), (4, 2), (2, 2, 2)])
def test_splitting_different_channels_gives_every_axis_units_of_its_own(
    sizes: tuple[int, ...],
) -> None:
    space = IdSpace()
    a = fresh(space, 8)
    result = reshape_ids(space, (a,), (8,), sizes, "view")
    assert all(axis is not None for axis in result)
    assert_same_elements(space, ((a,), (8,)), (result, sizes))
    assert resolve(space).n_units == sum(sizes)
    assert space.ties
    assert {tie.where for tie in space.ties} == {"view"}


def test_splitting_tiled_channels_twice_makes_no_units_of_the_copies() -> None:
    """Heads of every sample lie side by side, as in (tokens, batch x heads, width)."""
    space = IdSpace()
    a = fresh(space, 6)
    (tiled,) = reshape_ids(space, (None, a), (4, 6), (24,), "flatten")
    heads, places = reshape_ids(space, (tiled,), (24,), (12, 2), "view")
    batch, head, place = reshape_ids(space, (heads, places), (12, 2), (4, 3, 2), "view")
    assert batch is None
    assert head is not None
    assert place is not None
    assert resolve(space).n_units == 3 + 2


def test_a_shuffle_keeps_a_rectangle() -> None:
    space = IdSpace()
    a = fresh(space, 6)
    split = reshape_ids(space, (None, a), (2, 6), (2, 2, 3), "view")
    swapped = (split[0], split[2], split[1])
    merged = reshape_ids(space, swapped, (2, 3, 2), (2, 6), "view")
    resolution = resolve(space)
    assert resolution.n_units == 2 + 3
    assert merged[1] is not None
    before, after = (resolution.units[ids].tolist() for ids in (a, merged[1]))
    assert after == [before[i] for i in (0, 3, 1, 4, 2, 5)]


def test_one_channel_spread_over_a_block_stays() -> None:
    """Every element would go or none: no axis can carry that."""
    space = IdSpace()
    a = np.repeat(fresh(space, 1), 6)
    result = reshape_ids(space, (a,), (6,), (2, 3), "view")
    assert result == (None, None)
    resolution = resolve(space)
    assert resolution.n_units == 0
    assert list(resolution.reasons.values()) == ["view spreads one channel over several axes"]


def test_a_split_of_which_a_part_is_fixed_says_so() -> None:
    space = IdSpace()
    a = fresh(space, 6)
    a[0] = ALWAYS
    result = reshape_ids(space, (a,), (6,), (2, 3), "view")
    resolution = assert_same_elements(space, ((a,), (6,)), (result, (2, 3)))
    assert len(np.unique(resolution.units[a[1:]])) == 4  # three units, and what is fixed
    assert set(resolution.reasons.values()) == {"view splits an axis of which a part is fixed"}


def test_two_axes_that_both_carry_ids_make_products() -> None:
    space = IdSpace()
    a, b = fresh(space, 2), fresh(space, 3)
    (flat,) = reshape_ids(space, (a, b), (2, 3), (6,), "flatten")
    assert flat is not None
    resolution = assert_same_elements(space, ((a, b), (2, 3)), ((flat,), (6,)))
    assert resolution.n_units == 5
    assert (resolution.units[flat] != resolution.n_units).sum() == 12


def test_an_empty_tensor_carries_nothing() -> None:
    space = IdSpace()
    a = fresh(space, 4)
    assert reshape_ids(space, (None, a), (0, 4), (0, 2, 2), "view") == (None, None, None)


# -- joining ---------------------------------------------------------------------------------------------------


def test_joining_fills_up_with_what_is_always_kept() -> None:
    space = IdSpace()
    a, b = fresh(space, 2), fresh(space, 3)
    assert concat_ids([(None, 2), (None, 3)]) is None
    joined = concat_ids([(a, 2), (None, 2), (b, 3)])
    assert joined is not None
    assert joined.tolist() == [*a, ALWAYS, ALWAYS, *b]


def test_no_ids() -> None:
    assert none_ids(3) == (None, None, None)
    assert reshape_ids(IdSpace(), none_ids(2), (2, 3), (3, 2), "view") == (None, None)
