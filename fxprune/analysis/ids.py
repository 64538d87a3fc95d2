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
    """Where a run of ids was born: one axis of a parameter or buffer, or the output of a node."""

    name: str
    dim: int
    kind: str  # "parameter", "buffer" or "node"


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
    """

    units: Ids
    n_units: int
    reasons: dict[int, str]
    roots: Ids


class IdSpace:
    """A growing set of ids with union-find, freezing and composition."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1024, dtype=np.int64)
        self._size = 1
        self._starts: list[int] = [0]
        self._owners: list[Owner] = [Owner("", 0, "node")]
        self._frozen: list[tuple[Ids, str]] = []
        self._composed: list[tuple[Ids, Ids, Ids]] = []
        self._inputs: list[Ids] = []
        self.ties: list[Tie] = []

    def __len__(self) -> int:
        return self._size

    # -- making ids
    def fresh(self, count: int, owner: Owner) -> Ids:
        """Return `count` new consecutive ids born at `owner`."""
        start, stop = self._size, self._size + count
        if stop > len(self._parent):
            grown = np.zeros(max(stop, 2 * len(self._parent)), dtype=np.int64)
            grown[: self._size] = self._parent[: self._size]
            self._parent = grown
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
            ids[both] = self.fresh(int(both.sum()), owner)
            self._composed.append((ids[both], a[both], b[both]))
        return ids

    def parts(self, ids: Ids) -> tuple[Ids, Ids] | None:
        """Return the two factors of ids that one composition made, in any order, or None."""
        for made, a, b in self._composed:
            if len(ids) and made[0] <= ids.min() and ids.max() <= made[-1]:
                at = ids - made[0]
                return a[at], b[at]
        return None

    def atoms(self, ids: Ids) -> Ids:
        """Return the distinct ids that are not composed and on which `ids` depend.

        Id 0 is left out.
        """
        todo = [np.unique(ids)]
        found: list[Ids] = []
        while todo:
            now = todo.pop()
            rest = now
            for made, a, b in self._composed:
                at = now[(now >= made[0]) & (now <= made[-1])] - made[0]
                if len(at):
                    todo += [np.unique(a[at]), np.unique(b[at])]
                    rest = rest[(rest < made[0]) | (rest > made[-1])]
            found.append(rest)
        atoms: Ids = np.unique(np.concatenate(found))
        kept: Ids = atoms[atoms != ALWAYS]
        return kept

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

    # -- questions
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
        composed: dict[int, tuple[int, int]] = {}
        for made, a, b in self._composed:
            pairs = zip(roots[made].tolist(), roots[a].tolist(), roots[b].tolist(), strict=True)
            composed.update({m: (x, y) for m, x, y in pairs})
        cyclic = _cyclic(composed)
        reasons.update(dict.fromkeys(cyclic, "its channels would have to be parts of themselves"))
        self._spread_freezing(composed, reasons)
        for root in cyclic:
            del composed[root]
        needed = np.zeros(self._size, dtype=bool)
        needed[roots[used]] = True
        for whole, parts in reversed(composed.items()):
            needed[list(parts)] |= needed[whole]
        atomic = np.unique(roots)
        fixed = np.fromiter({ALWAYS, *reasons, *composed}, dtype=np.int64)
        free = atomic[needed[atomic] & ~np.isin(atomic, fixed)]
        units = _unit_table(self._size, free, composed)
        return Resolution(units[roots], len(free), reasons, roots)

    def _close_compositions(self) -> None:
        """Tie the factors of composed ids that were themselves tied.

        Equal products get equal factors, in order: a sufficient condition, not a necessary one.
        """
        changed = bool(self._composed)
        while changed:
            changed = False
            seen: dict[int, tuple[int, int]] = {}
            for made, a, b in self._composed:
                keys = self.find(made)
                for key, x, y in zip(keys.tolist(), a.tolist(), b.tolist(), strict=True):
                    first = seen.setdefault(key, (x, y))
                    changed |= self._link(np.array([x, y]), np.array(first))

    @staticmethod
    def _spread_freezing(composed: dict[int, tuple[int, int]], reasons: dict[int, str]) -> None:
        """Freeze the factors of frozen products, and products of frozen factors."""
        changed = True
        while changed:
            changed = False
            for whole, parts in composed.items():
                frozen = [part for part in parts if part in reasons]
                if whole in reasons and len(frozen) < len(parts):
                    reasons.update({p: reasons[whole] for p in parts if p not in reasons})
                    changed = True
                elif whole not in reasons and len(frozen) == len(parts):
                    reasons[whole] = reasons[frozen[0]]
                    changed = True


def _cyclic(composed: dict[int, tuple[int, int]]) -> set[int]:
    """Return the roots that are, through compositions, parts of themselves."""
    graph = nx.DiGraph([(whole, part) for whole, parts in composed.items() for part in parts])
    loops = {whole for whole, parts in composed.items() if whole in parts}
    rings = (ring for ring in nx.strongly_connected_components(graph) if len(ring) > 1)
    return loops.union(*rings)


def _unit_table(size: int, free: Ids, composed: dict[int, tuple[int, int]]) -> Ids:
    """Return for each root the indices of the units it needs, padded with ``len(free)``."""
    pad = len(free)
    single = np.full(size, pad, dtype=np.int64)
    single[free] = np.arange(pad)
    if not composed:
        return single[:, None]
    sets: dict[int, frozenset[int]] = {}

    def units_of(root: int) -> frozenset[int]:
        if root not in sets:
            if root in composed:
                x, y = composed[root]
                sets[root] = units_of(x) | units_of(y)
            else:
                unit = int(single[root])
                sets[root] = frozenset() if unit == pad else frozenset({unit})
        return sets[root]

    rows = {root: sorted(units_of(root)) for root in composed}
    width = max(1, *(len(row) for row in rows.values()))
    table = np.full((size, width), pad, dtype=np.int64)
    table[:, 0] = single
    for root, row in rows.items():
        table[root] = pad
        table[root, : len(row)] = row
    return table
