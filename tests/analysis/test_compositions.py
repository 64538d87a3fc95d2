"""Products of channel ids: whatever is kept, every relation that was stated must hold."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.analysis.ids import ALWAYS, Ids, IdSpace, Owner, Resolution

OWNER = Owner("weight", 0, "parameter")


def ids(*values: int) -> Ids:
    return np.array(values, dtype=np.int64)


def fresh(space: IdSpace, count: int, name: str = "weight") -> Ids:
    return space.fresh(count, Owner(name, 0, "parameter"))


def resolve(space: IdSpace) -> Resolution:
    """Resolve with every id in use."""
    return space.resolve(np.ones(len(space), dtype=bool))


def units(resolution: Resolution, at: int) -> frozenset[int]:
    """Return the units an id needs."""
    return frozenset(resolution.units[at].tolist()) - {resolution.n_units}


# -- a naive reference: relations as a list, checked one by one ------------------------------------------------


@dataclass
class Relations:
    """What was said about the ids, to be checked on any choice of what lives."""

    ties: list[tuple[int, int]] = field(default_factory=list)
    frozen: list[int] = field(default_factory=list)
    products: list[tuple[int, int, int]] = field(default_factory=list)

    def broken(self, alive: np.ndarray) -> list[str]:
        """Name the relations that a choice breaks."""
        found = [f"{a} = {b}" for a, b in self.ties if alive[a] != alive[b]]
        found += [f"{i} frozen" for i in (ALWAYS, *self.frozen) if not alive[i]]
        found += [
            f"{m} = {a} and {b}" for m, a, b in self.products if alive[m] != (alive[a] & alive[b])
        ]
        return found


def alive(resolution: Resolution, keep: np.ndarray) -> np.ndarray:
    """Return which ids live when only some units are kept."""
    return np.append(keep, True)[resolution.units].all(axis=1)


def choices(resolution: Resolution, seed: int = 0) -> list[np.ndarray]:
    """Return all ways to keep units when there are few, some of them otherwise."""
    n = resolution.n_units
    if n <= 6:
        return [
            np.array([bool(bits >> i & 1) for i in range(n)], dtype=bool) for bits in range(1 << n)
        ]
    generator = np.random.default_rng(seed)
    return [generator.random(n) < 0.5 for _ in range(60)]


def assert_sound(space: IdSpace, said: Relations) -> Resolution:
    """Check that whatever is kept, every relation holds."""
    resolution = resolve(space)
    for keep in choices(resolution):
        assert said.broken(alive(resolution, keep)) == []
    return resolution


# -- compositions ----------------------------------------------------------------------------------------------


def test_a_product_needs_both_factors() -> None:
    space = IdSpace()
    a, b = fresh(space, 2), fresh(space, 3)
    made = space.compose(np.repeat(a, 3), np.tile(b, 2), OWNER)
    resolution = resolve(space)
    assert resolution.n_units == 5
    for at, (x, y) in zip(made, [(x, y) for x in a for y in b], strict=True):
        assert units(resolution, at) == units(resolution, x) | units(resolution, y)
        assert len(units(resolution, at)) == 2


def test_a_product_with_nothing_is_the_other_factor() -> None:
    space = IdSpace()
    a = fresh(space, 3)
    assert np.array_equal(space.compose(a, ids(0, 0, 0), OWNER), a)
    assert np.array_equal(space.compose(ids(0, 0, 0), a, OWNER), a)


def test_parts_and_atoms() -> None:
    space = IdSpace()
    a, b, c = fresh(space, 4), fresh(space, 4), fresh(space, 4)
    ab = space.compose(a, b, OWNER)
    abc = space.compose(ab, c, OWNER)
    parts = space.parts(ab[::-1])
    assert parts is not None
    assert [p.tolist() for p in parts] == [a[::-1].tolist(), b[::-1].tolist()]
    parts = space.parts(abc[1:2])
    assert parts is not None
    assert [p.tolist() for p in parts] == [[ab[1]], [c[1]]]
    assert space.parts(a) is None
    assert space.parts(np.concatenate([ab, a])) is None
    assert space.parts(a[:0]) is None
    assert space.atoms(abc).tolist() == [*a, *b, *c]
    assert space.atoms(np.concatenate([ab[:1], c[:1], ids(0)])).tolist() == [a[0], b[0], c[0]]
    assert space.atoms(ids(0)).tolist() == []


def test_two_products_that_are_tied_have_tied_factors() -> None:
    space = IdSpace()
    a, b, c, d = (fresh(space, 2) for _ in range(4))
    one = space.compose(np.repeat(a, 2), np.tile(b, 2), OWNER)
    two = space.compose(np.repeat(c, 2), np.tile(d, 2), OWNER)
    space.unify(one, two, "add")
    resolution = resolve(space)
    assert resolution.n_units == 4
    for x, y in ((a, c), (b, d)):
        assert [units(resolution, i) for i in x] == [units(resolution, i) for i in y]


def test_ties_of_factors_reach_nested_products() -> None:
    space = IdSpace()
    a, b, c, d, e, f = (fresh(space, 3) for _ in range(6))
    one = space.compose(space.compose(a, b, OWNER), c, OWNER)
    two = space.compose(space.compose(d, e, OWNER), f, OWNER)
    space.unify(one, two, "add")
    resolution = resolve(space)
    assert resolution.n_units == 9
    assert [units(resolution, i) for i in e] == [units(resolution, i) for i in b]


def test_a_product_tied_to_an_atom() -> None:
    """The atom needs what the product needs; it is no unit of its own."""
    space = IdSpace()
    a, b, p = (fresh(space, 3) for _ in range(3))
    made = space.compose(a, b, OWNER)
    space.unify(made, p, "matmul")
    resolution = resolve(space)
    assert resolution.n_units == 6
    assert [units(resolution, i) for i in p] == [units(resolution, i) for i in made]
    assert all(len(units(resolution, i)) == 2 for i in p)


@pytest.mark.parametrize("through", ["the product", "an atom tied to it", "a product of it"])
def test_a_frozen_product_freezes_its_factors(through: str) -> None:
    space = IdSpace()
    a, b, c, p = (fresh(space, 2) for _ in range(4))
    made = space.compose(a, b, OWNER)
    whole = space.compose(made, c, OWNER)
    space.unify(made, p, "add")
    space.freeze(
        {"the product": made, "an atom tied to it": p, "a product of it": whole}[through], "said so"
    )
    resolution = resolve(space)
    for i in (*a, *b, *made, *p):
        assert units(resolution, i) == frozenset()
    assert {resolution.reasons[resolution.roots[i]] for i in (*a, *b)} == {"said so"}
    assert resolution.n_units == (0 if through == "a product of it" else 2)


def test_what_is_tied_to_a_frozen_product_is_told_why() -> None:
    space = IdSpace()
    a, b, p = (fresh(space, 2) for _ in range(3))
    made = space.compose(a, b, OWNER)
    space.unify(made, p, "add")
    space.freeze(made, "said so")
    resolution = resolve(space)
    assert {resolution.reasons[resolution.roots[i]] for i in p} == {"said so"}


def test_a_frozen_factor_leaves_the_other_free() -> None:
    space = IdSpace()
    a, b = fresh(space, 3), fresh(space, 3)
    made = space.compose(a, b, OWNER)
    space.freeze(a, "said so")
    resolution = resolve(space)
    assert [units(resolution, i) for i in made] == [units(resolution, i) for i in b]
    assert resolution.n_units == 3


def test_a_product_of_itself_with_itself() -> None:
    space = IdSpace()
    a = fresh(space, 3)
    resolution = resolve(space)
    made = space.compose(a, a, OWNER)
    resolution = resolve(space)
    assert [units(resolution, i) for i in made] == [units(resolution, i) for i in a]


def test_a_product_tied_to_its_own_factor() -> None:
    """p = p and q: p implies q."""
    space, said = IdSpace(), Relations()
    p, q = fresh(space, 2), fresh(space, 2)
    made = space.compose(p, q, OWNER)
    said.products += zip(made, p, q, strict=True)
    space.unify(made, p, "add")
    said.ties += zip(made, p, strict=True)
    assert_sound(space, said)


def test_two_products_that_contain_each_other() -> None:
    space, said = IdSpace(), Relations()
    p, q, b, c = (fresh(space, 1) for _ in range(4))
    one, two = space.compose(p, b, OWNER), space.compose(q, c, OWNER)
    said.products += [(one[0], p[0], b[0]), (two[0], q[0], c[0])]
    for x, y in ((one, q), (two, p)):
        space.unify(x, y, "add")
        said.ties.append((x[0], y[0]))
    assert_sound(space, said)


@pytest.mark.parametrize("swap", [False, True])
def test_a_product_with_some_fixed_positions_tied_to_another_product(swap: bool) -> None:
    space, said = IdSpace(), Relations()
    b, c, d = (fresh(space, 2) for _ in range(3))
    a = ids(ALWAYS, fresh(space, 1)[0])
    pairs = [(c, d), (a, b)] if swap else [(a, b), (c, d)]
    made = []
    for x, y in pairs:
        made.append(space.compose(x, y, OWNER))
        said.products += zip(made[-1], x, y, strict=True)
    space.unify(*made, "add")
    said.ties += zip(*made, strict=True)
    assert_sound(space, said)


# -- anything at all -------------------------------------------------------------------------------------------


def random_space(seed: int, *, zeros: bool, circles: bool) -> tuple[IdSpace, Relations]:
    """Say random things about random ids: ties, freezes, products of products."""
    rng = random.Random(seed)
    space, said = IdSpace(), Relations()
    count = rng.randint(2, 8)
    fresh(space, count)
    lowest = 0 if zeros else 1
    runs = [ids(*(rng.randint(lowest, count) for _ in range(rng.randint(1, 3)))) for _ in range(4)]
    for _ in range(rng.randint(1, 4)):
        a = rng.choice(runs)
        b = rng.choice([r for r in runs if len(r) == len(a)])
        made = space.compose(a, b, OWNER)
        said.products += zip(made.tolist(), a.tolist(), b.tolist(), strict=True)
        if circles:
            runs.append(made)
    products = [m for m, _, _ in said.products]
    for _ in range(rng.randint(0, 4)):
        anything = circles and rng.random() < 0.5
        pool = (
            range(1, len(space))
            if anything
            else products
            if rng.random() < 0.5
            else range(1, count + 1)
        )
        x, y = rng.choices(pool, k=2)
        if rng.random() < 0.25:
            space.freeze(ids(x), "said so")
            said.frozen.append(x)
        else:
            space.unify(ids(x), ids(y), "op")
            said.ties.append((x, y))
    return space, said


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_whatever_is_kept_every_relation_holds(seed: int) -> None:
    assert_sound(*random_space(seed, zeros=False, circles=False))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_even_where_products_contain_each_other(seed: int) -> None:
    assert_sound(*random_space(seed, zeros=False, circles=True))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_even_where_products_contain_id_0(seed: int) -> None:
    assert_sound(*random_space(seed, zeros=True, circles=True))


def test_the_check_of_relations_can_fail() -> None:
    said = Relations(ties=[(1, 2)], frozen=[3], products=[(4, 1, 2)])
    assert said.broken(np.array([True] * 5)) == []
    assert said.broken(np.array([True, True, False, False, True])) == [
        "1 = 2",
        "3 frozen",
        "4 = 1 and 2",
    ]
