"""Channel ids against a naive reference: ties, freezing and the questions asked of them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fxprune.analysis.ids import ALWAYS, Ids, IdSpace, Owner, Resolution


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


class Naive:
    """Union-find by relabelling lists, for ids without compositions."""

    def __init__(self, count: int) -> None:
        self.label = list(range(count))
        self.frozen: set[int] = set()

    def unify(self, a: int, b: int) -> None:
        if ALWAYS in (a, b):
            self.frozen.add(max(a, b))
            return
        old, new = self.label[a], self.label[b]
        self.label = [new if x == old else x for x in self.label]

    def classes(self) -> set[frozenset[int]]:
        """Return the classes that may be removed."""
        kept = {self.label[i] for i in (ALWAYS, *self.frozen)}
        found: dict[int, set[int]] = {}
        for i, label in enumerate(self.label):
            if label not in kept:
                found.setdefault(label, set()).add(i)
        return {frozenset(members) for members in found.values()}


# -- ties and freezing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_ties_against_the_naive_reference(seed: int) -> None:
    rng = random.Random(seed)
    space, count = IdSpace(), rng.randint(5, 60)
    fresh(space, count)
    naive = Naive(count + 1)
    for _ in range(rng.randint(0, 25)):
        n = rng.randint(1, 6)
        a, b = (ids(*(rng.randint(0, count) for _ in range(n))) for _ in range(2))
        if rng.random() < 0.2:
            space.freeze(a[:1], "said so")
            naive.frozen |= set(a[:1].tolist()) - {ALWAYS}
        else:
            space.unify(a, b, "an op")
            for x, y in zip(a.tolist(), b.tolist(), strict=True):
                if x != y:
                    naive.unify(x, y)
    resolution = resolve(space)
    found: dict[int, set[int]] = {}
    for at in range(len(space)):
        for unit in units(resolution, at):
            found.setdefault(unit, set()).add(at)
    assert {frozenset(members) for members in found.values()} == naive.classes()
    assert sorted(found) == list(range(resolution.n_units))
    roots = space.find(np.arange(len(space)))
    assert [(roots[i] == roots[j]) for i in range(len(space)) for j in range(i)] == [
        naive.label[i] == naive.label[j] for i in range(len(space)) for j in range(i)
    ]


def test_one_tie_of_many_positions_at_once() -> None:
    """A position may occur several times in one call; all of its partners end in one class."""
    space = IdSpace()
    made = fresh(space, 9)
    space.unify(ids(9, 9, 9, 8, 8), ids(1, 2, 3, 3, 4), "gather")
    assert len(set(space.find(made[[0, 1, 2, 3, 7, 8]]).tolist())) == 1
    assert resolve(space).n_units == 4


def test_growing_keeps_what_was_tied() -> None:
    space = IdSpace()
    first = fresh(space, 1000)
    space.unify(first[:500], first[500:], "add")
    fresh(space, 5000)
    assert np.array_equal(space.find(first[:500]), space.find(first[500:]))
    assert len(space) == 6001


def test_a_tie_to_id_0_freezes_with_a_reason() -> None:
    space = IdSpace()
    a, b = fresh(space, 3), fresh(space, 3)
    space.unify(a, ids(0, 0, 0), "add", "it is added to the input")
    space.unify(b, ids(ALWAYS, *b[1:]), "add")
    resolution = resolve(space)
    assert [units(resolution, i) for i in a] == [frozenset()] * 3
    assert set(resolution.reasons.values()) == {
        "it is added to the input",
        "tied to a fixed size by add",
    }
    assert resolution.n_units == 2
    assert space.ties == []


def test_the_first_reason_is_told() -> None:
    space = IdSpace()
    a = fresh(space, 2)
    space.freeze(a, "first")
    space.freeze(a, "second")
    space.freeze(None, "nothing")
    space.freeze(ids(0, 0), "nothing")
    assert set(resolve(space).reasons.values()) == {"first"}


def test_ties_are_remembered_with_their_operation() -> None:
    space = IdSpace()
    a, b = fresh(space, 4), fresh(space, 4)
    space.unify(a, np.concatenate([a[:1], b[1:]]), "add")
    (tie,) = space.ties
    assert tie.where == "add"
    assert tie.a.tolist() == a[1:].tolist()
    assert tie.b.tolist() == b[1:].tolist()


def test_what_slices_no_parameter_is_no_unit() -> None:
    space = IdSpace()
    a, b = fresh(space, 2), fresh(space, 3)
    used = np.zeros(len(space), dtype=bool)
    used[b] = True
    resolution = space.resolve(used)
    assert resolution.n_units == 3
    assert [units(resolution, i) for i in a] == [frozenset()] * 2


def test_owners_runs_and_inputs() -> None:
    space = IdSpace()
    a, b, c = (fresh(space, 3, name) for name in "abc")
    assert [o.name for o in space.owners(np.concatenate([c[:1], a]))] == ["a", "c"]
    assert space.owners(ids(0)) == []
    assert [(o.name, run.tolist()) for o, run in space.runs()] == [
        ("a", a.tolist()),
        ("b", b.tolist()),
        ("c", c.tolist()),
    ]
    space.mark_input(b)
    space.mark_input(None)
    assert np.flatnonzero(space.input_mask()).tolist() == b.tolist()
