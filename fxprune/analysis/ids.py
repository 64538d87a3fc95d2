"""Channel ids: integers that name prunable positions, with the ties between them.

Every position of every parameter axis gets an id of its own; operators tie ids together. An id
lives when its whole class lives. Two more relations are needed:

* *freezing*: ``freeze(ids, reason)`` says that these positions must stay; a class with one frozen
  id is frozen.
* *composition*: when two axes of widths ``a`` and ``b`` merge into one of width ``a * b``, position
  ``(i, j)`` of the result lives exactly when ``i`` and ``j`` both do. ``compose`` returns such ids.
  After `resolve`, an id therefore stands for a *set* of atomic classes, the units; almost always
  the set has one member.

Id 0 is "always kept". All operations work on whole numpy arrays: a residual add of 2048 channels is
one call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
import numpy.typing as npt

__all__ = ["ALWAYS", "Ids", "IdSpace", "Owner", "Resolution", "Tie"]

Ids = npt.NDArray[np.int64]
ALWAYS = 0


@dataclass(frozen=True, slots=True)
class Owner:
    """Where ids were born: one axis of a parameter or buffer, the output of a node, or a branch."""

    name: str
    dim: int
    kind: str  # "parameter", "buffer", "node" or "branch"


@dataclass(frozen=True, slots=True)
class Tie:
    """Two equally long runs of ids that an operation tied position by position."""

    a: Ids
    b: Ids
    where: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What the ids mean once all ties are known.

    Attributes
    ----------
    units : Ids, shape (n_ids, k)
        The unit indices whose conjunction each id is, padded with ``n_units``. An always-kept id
        has only padding.
    n_units : int
        Number of free units.
    reasons : dict[int, str]
        Reason by root class, for the frozen classes.
    roots : Ids, shape (n_ids,)
        Root class of each id.
    atoms : Ids, shape (n_units,)
        Root class of each unit.
    """

    units: Ids
    n_units: int
    reasons: dict[int, str]
    roots: Ids
    atoms: Ids


class IdSpace:
    """A growing set of ids with union-find, freezing and composition."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1024, dtype=np.int64)
        self._factors: Ids = np.zeros((2, 1024), dtype=np.int64)  # of composed ids, else 0
        self._size = 1
        self._starts: list[int] = [0]
        self._owners: list[Owner] = [Owner("", 0, "node")]
        self._frozen: list[tuple[Ids, str]] = []
        self._inputs: list[Ids] = []
        self._heads: list[Ids] = []
        self.ties: list[Tie] = []

    def __len__(self) -> int:
        return self._size

    # -- making ids
    def fresh(self, count: int, owner: Owner) -> Ids:
        """Return `count` new consecutive ids born at `owner`."""
        start, stop = self._size, self._size + count
        if stop > len(self._parent):
            more = max(stop, 2 * len(self._parent)) - len(self._parent)
            self._parent = np.pad(self._parent, (0, more))
            self._factors = np.pad(self._factors, ((0, 0), (0, more)))
        ids = np.arange(start, stop, dtype=np.int64)
        self._parent[start:stop] = ids
        self._size = stop
        self._starts.append(start)
        self._owners.append(owner)
        return ids

    def compose(self, a: Ids, b: Ids, owner: Owner) -> Ids:
        """Return ids that live exactly where those of `a` and those of `b` both live."""
        both = (a != ALWAYS) & (b != ALWAYS)
        ids: Ids = np.where(a == ALWAYS, b, a)
        if both.any():
            made = self.fresh(int(both.sum()), owner)
            self._factors[:, made] = a[both], b[both]
            ids[both] = made
        return ids

    def parts(self, ids: Ids) -> tuple[Ids, Ids] | None:
        """Return the two factors of ids that are all composed, or None."""
        a, b = self._factors[:, ids]
        return (a, b) if len(ids) and a.all() else None

    def atoms(self, ids: Ids) -> Ids:
        """Return the distinct ids that are not composed and on which `ids` depend.

        Id 0 is left out.
        """
        now = np.unique(ids)
        while True:
            composed = self._factors[0, now] != ALWAYS
            if not composed.any():
                kept: Ids = now[now != ALWAYS]
                return kept
            now = np.unique(np.concatenate([now[~composed], *self._factors[:, now[composed]]]))

    def factor_pairs(self) -> tuple[Ids, Ids]:
        """Return the root classes of the two factors of every composed id, in order of birth.

        Equal products have equal factors then.
        """
        self._close_compositions()
        made = np.flatnonzero(self._factors[0, : self._size])
        return self.find(self._factors[0, made]), self.find(self._factors[1, made])

    # -- relations
    def find(self, ids: Ids) -> Ids:
        """Return the root of each id."""
        root = self._parent[ids]
        while True:
            up: Ids = self._parent[root]
            if np.array_equal(up, root):
                break
            root = up
        self._parent[ids] = root
        return root

    def unify(self, a: Ids, b: Ids, where: str, why_frozen: str = "") -> None:
        """Tie `a` and `b` position by position.

        A position tied to id 0 is frozen with `why_frozen`.
        """
        fixed = (a == ALWAYS) != (b == ALWAYS)
        if fixed.any():
            self.freeze(np.maximum(a, b)[fixed], why_frozen or f"tied to a fixed size by {where}")
        free = (a != ALWAYS) & (b != ALWAYS) & (a != b)
        if not free.any():
            return
        a, b = a[free], b[free]
        self.ties.append(Tie(a, b, where))
        self._link(a, b)

    def _link(self, a: Ids, b: Ids) -> bool:
        changed = False
        while True:
            ra, rb = self.find(a), self.find(b)
            differ = ra != rb
            if not differ.any():
                return changed
            low = np.minimum(ra[differ], rb[differ])
            high = np.maximum(ra[differ], rb[differ])
            np.minimum.at(self._parent, high, low)
            changed = True

    def freeze(self, ids: Ids | None, reason: str) -> None:
        """Mark ids as never prunable, with the reason the user is told."""
        if ids is None:
            return
        free = ids[ids != ALWAYS]
        if len(free):
            self._frozen.append((free, reason))

    def mark_input(self, ids: Ids | None) -> None:
        """Mark ids as the input side of a contraction.

        Such ids follow a producer and do not define a width of their own.
        """
        if ids is not None:
            self._inputs.append(ids[ids != ALWAYS])

    def mark_heads(self, ids: Ids | None) -> None:
        """Mark ids as heads: an axis that a product of two activations is batched over."""
        if ids is not None:
            self._heads.append(self.atoms(ids))

    # -- questions
    def heads(self) -> Ids:
        """Return the ids marked by `mark_heads`."""
        return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._heads]))

    def owners(self, ids: Ids) -> list[Owner]:
        """Return the distinct owners of `ids`, in order of birth."""
        at = np.searchsorted(np.asarray(self._starts), np.unique(ids), side="right") - 1
        return [self._owners[i] for i in np.unique(at) if i]

    def runs(self) -> Iterator[tuple[Owner, Ids]]:
        """Yield every owner with its ids."""
        stops = [*self._starts[1:], self._size]
        for owner, start, stop in zip(self._owners[1:], self._starts[1:], stops[1:], strict=True):
            yield owner, np.arange(start, stop, dtype=np.int64)

    def input_mask(self) -> npt.NDArray[np.bool_]:
        """Return which ids were marked by `mark_input`, shape (n_ids,)."""
        mask = np.zeros(self._size, dtype=bool)
        for ids in self._inputs:
            mask[ids] = True
        return mask

    # -- the end
    def resolve(self, used: npt.NDArray[np.bool_]) -> Resolution:
        """Turn ids into units.

        Parameters
        ----------
        used : bool array, shape (n_ids,)
            Ids that slice some parameter or buffer. A class with none of them has nothing to prune
            and is kept.
        """
        self._close_compositions()
        roots = self.find(np.arange(self._size, dtype=np.int64))
        reasons: dict[int, str] = {}
        for ids, reason in self._frozen:
            for root in np.unique(roots[self.atoms(ids)]).tolist():
                reasons.setdefault(root, reason)
        wholes, parts = self._products(roots)
        levels, cyclic = _levels(self._size, wholes, parts)
        reasons.update(dict.fromkeys(cyclic, "its channels would have to be parts of themselves"))
        _spread_freezing(wholes, parts, reasons)
        needed = np.zeros(self._size, dtype=bool)
        needed[roots[used]] = True
        for level in reversed(levels):
            needed[parts[:, level[needed[wholes[level]]]]] = True
        atomic = np.unique(roots)
        fixed = np.fromiter({ALWAYS, *reasons, *wholes.tolist()}, dtype=np.int64)
        free = atomic[needed[atomic] & ~np.isin(atomic, fixed)]
        units = _unit_table(self._size, free, wholes, parts, levels)
        return Resolution(units[roots], len(free), reasons, roots, free)

    def _products(self, roots: Ids) -> tuple[Ids, Ids]:
        """Return the distinct roots of composed ids, shape (m,), and of their factors, (2, m)."""
        made = np.flatnonzero(self._factors[0, : self._size])
        wholes, first = np.unique(roots[made], return_index=True)
        return wholes, roots[self._factors[:, made[first]]]

    def _close_compositions(self) -> None:
        """Tie the factors of composed ids that were themselves tied.

        Equal products get equal factors, in order: a sufficient condition, not a necessary one.
        """
        made = np.flatnonzero(self._factors[0, : self._size])
        changed = len(made) > 0
        while changed:
            _, first, which = np.unique(self.find(made), return_index=True, return_inverse=True)
            same = made[first][which]
            linked = [self._link(f[made], f[same]) for f in self._factors]
            changed = any(linked)


def _levels(size: int, wholes: Ids, parts: Ids) -> tuple[list[Ids], set[int]]:
    """Order products by depth: those of atoms, those of these, and so on.

    Returns
    -------
    levels : list of int arrays
        Indices into `wholes`.
    cyclic : set of int
        Roots that are, through compositions, parts of themselves; they are on no level.
    """
    known = np.ones(size, dtype=bool)
    known[wholes] = False
    left = np.arange(len(wholes))
    levels: list[Ids] = []
    cyclic: set[int] = set()
    while len(left):
        ready = known[parts[:, left]].all(axis=0)
        if ready.any():
            levels.append(left[ready])
        else:
            cyclic |= (rings := _rings(wholes[left], parts[:, left]))
            ready = np.isin(wholes[left], list(rings))
        known[wholes[left[ready]]] = True
        left = left[~ready]
    return levels, cyclic


def _rings(wholes: Ids, parts: Ids) -> set[int]:
    edges = [(w, p) for row in parts for w, p in zip(wholes.tolist(), row.tolist(), strict=True)]
    loops = {whole for whole, part in edges if whole == part}
    found = nx.strongly_connected_components(nx.DiGraph(edges))
    return loops.union(*(ring for ring in found if len(ring) > 1))


def _spread_freezing(wholes: Ids, parts: Ids, reasons: dict[int, str]) -> None:
    """Freeze the factors of frozen products, and products of frozen factors."""
    changed = len(wholes) > 0
    while changed:
        frozen = np.fromiter(reasons, dtype=np.int64)
        whole, part = np.isin(wholes, frozen), np.isin(parts, frozen)
        down = np.flatnonzero(whole & ~part.all(axis=0))
        up = np.flatnonzero(~whole & part.all(axis=0))
        changed = bool(len(down) or len(up))
        for at in down.tolist():
            for factor in parts[:, at].tolist():
                reasons.setdefault(factor, reasons[int(wholes[at])])
        for at in up.tolist():
            reasons[int(wholes[at])] = reasons[int(parts[0, at])]


def _unit_table(size: int, free: Ids, wholes: Ids, parts: Ids, levels: list[Ids]) -> Ids:
    """Return for each root the indices of the units it needs, padded with ``len(free)``."""
    pad = len(free)
    table = np.full((size, 1), pad, dtype=np.int64)
    table[free, 0] = np.arange(pad)
    for level in levels:
        both = np.sort(np.concatenate([table[parts[0, level]], table[parts[1, level]]], axis=1))
        both[:, 1:][both[:, 1:] == both[:, :-1]] = pad
        both = np.sort(both)
        width = max(table.shape[1], int((both != pad).sum(axis=1).max(initial=1)))
        table = np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=pad)
        table[wholes[level]] = both[:, :width]
    return table
