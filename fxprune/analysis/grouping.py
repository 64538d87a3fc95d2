"""From ids to groups: number the units, gather them by their member axes, name what is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fxprune.analysis.ids import Ids, IdSpace, Owner, Resolution
from fxprune.analysis.op import KERNEL
from fxprune.analysis.plan import ChannelGroup, FrozenAxis, GroupKind, Member
from fxprune.analysis.policy import kinds_of

__all__ = ["UNUSED", "Grouping", "group_units"]

UNUSED = "the captured graph does not use this parameter"


@dataclass(frozen=True, slots=True)
class Grouping:
    """Groups with their units numbered one group after the other."""

    groups: tuple[ChannelGroup, ...]
    frozen: tuple[FrozenAxis, ...]
    resolution: Resolution
    axes: Mapping[tuple[str, int], Ids]


def group_units(
    space: IdSpace,
    unused: Sequence[tuple[str, tuple[int, ...]]],
    branches: Mapping[int, tuple[Member, ...]] | None = None,
) -> Grouping:
    """Resolve all ties and gather units into groups; branches come last.

    Parameters
    ----------
    space : IdSpace
        All ids with their relations.
    unused : sequence of (name, shape)
        Parameters that no operator touched.
    branches : mapping of int to tuple of Member, optional
        Ids of branches, and what belongs to each.

    Returns
    -------
    Grouping
    """
    stored = [(owner, ids) for owner, ids in space.runs() if owner.kind != "node"]
    used = np.zeros(len(space), dtype=bool)
    for _, ids in stored:
        used[ids] = True
    resolution = space.resolve(used)
    kinds: list[GroupKind] = [
        "branch" if atom in (branches or {}) else kind
        for atom, kind in zip(
            resolution.atoms.tolist(), kinds_of(space, resolution.atoms), strict=True
        )
    ]
    order, groups = _groups(space, stored, resolution, kinds)
    groups = tuple(
        replace(group, members=(branches or {})[int(resolution.atoms[unit])])
        if group.kind == "branch"
        else group
        for group, unit in zip(groups, order[_starts(groups)].tolist(), strict=True)
    )
    rank = np.empty(resolution.n_units + 1, dtype=np.int64)
    rank[order] = np.arange(resolution.n_units)
    rank[resolution.n_units] = resolution.n_units
    numbered = replace(resolution, units=rank[resolution.units])
    frozen = (*_frozen(stored, resolution), *_untouched(unused))
    axes = {(owner.name, owner.dim): ids for owner, ids in stored if owner.kind != "branch"}
    return Grouping(groups, frozen, numbered, axes)


def _starts(groups: Sequence[ChannelGroup]) -> Ids:
    """Return the place of each group's first unit."""
    sizes = np.array([group.size for group in groups], dtype=np.int64)
    return np.cumsum(sizes) - sizes


def _pairs(
    stored: Sequence[tuple[Owner, Ids]], resolution: Resolution
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the distinct (unit, axis) pairs and the first position of the unit on that axis."""
    units, axes, places = [], [], []
    for number, (_, ids) in enumerate(stored):
        table = resolution.units[ids]
        for column in range(table.shape[1]):
            found, first = np.unique(table[:, column], return_index=True)
            free = found != resolution.n_units
            units.append(found[free])
            places.append(first[free])
            axes.append(np.full(int(free.sum()), number))
    if not units:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    return np.concatenate(units), np.concatenate(axes), np.concatenate(places)


def _groups(
    space: IdSpace,
    stored: Sequence[tuple[Owner, Ids]],
    resolution: Resolution,
    kinds: Sequence[GroupKind],
) -> tuple[npt.NDArray[np.int64], tuple[ChannelGroup, ...]]:
    """Return the units in group order and the groups.

    Units belong to one group when their sets of axes are equal, and the sets of units that they
    share positions with, as the heads of an attention do with the places inside them. Sets are
    compared by a sum of random 64-bit numbers, one per member, and never in
    a Python loop over units.
    """
    units, axes, places = _pairs(stored, resolution)
    if not len(units):
        return np.zeros(0, dtype=np.int64), ()
    by_unit = np.lexsort((axes, units))
    units, axes, places = units[by_unit], axes[by_unit], places[by_unit]
    distinct = np.ones(len(units), dtype=bool)
    distinct[1:] = (units[1:] != units[:-1]) | (axes[1:] != axes[:-1])
    units, axes, places = units[distinct], axes[distinct], places[distinct]
    numbers = np.random.default_rng(0).integers(1, 2**63, size=len(stored), dtype=np.uint64)
    signature = np.zeros(resolution.n_units, dtype=np.uint64)
    np.add.at(signature, units, numbers[axes])
    signature += _partners(resolution)

    inputs = space.input_mask()
    is_input = np.array([bool(inputs[ids].any()) for _, ids in stored])
    is_buffer = np.array([owner.kind == "buffer" for owner, _ in stored])
    preference = axes + len(stored) * (is_input[axes] + 2 * is_buffer[axes])
    leading = np.lexsort((preference, units))
    first = leading[np.searchsorted(units[leading], np.arange(resolution.n_units))]
    lead_axis, lead_place = axes[first], places[first]

    order = np.lexsort((lead_place, signature, lead_axis))
    borders = np.flatnonzero(
        (np.diff(signature[order].astype(np.uint64)) != 0) | (np.diff(lead_axis[order]) != 0)
    )
    chunks = np.split(order, borders + 1)
    chunks.sort(
        key=lambda c: (int(lead_axis[c[0]]), int(lead_place[c].min()), kinds[int(c[0])] != "head")
    )
    starts = np.searchsorted(units, np.arange(resolution.n_units + 1))
    names: dict[str, int] = {}
    groups = []
    for chunk in chunks:
        mine = axes[starts[chunk[0]] : starts[chunk[0] + 1]]
        members = _members(stored, mine)
        lead = stored[int(lead_axis[chunk[0]])][0]
        groups.append(
            ChannelGroup(
                _name(lead, bool(is_input[lead_axis[chunk[0]]]), names),
                kinds[int(chunk[0])],
                len(chunk),
                members,
            )
        )
    return np.concatenate(chunks), tuple(groups)


def _partners(resolution: Resolution) -> npt.NDArray[np.uint64]:
    """Return for each unit a number that stands for the set of units it shares positions with."""
    none = resolution.n_units
    rows = resolution.units[(resolution.units != none).sum(axis=1) > 1]
    columns = range(rows.shape[1])
    # a pair as one number: to sort rows takes numpy many times as long
    pairs = [rows[:, a] * (none + 1) + rows[:, b] for a in columns for b in columns if a != b]
    first, second = np.divmod(
        np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *pairs])), none + 1
    )
    met = (first != none) & (second != none)
    numbers = np.random.default_rng(1).integers(1, 2**63, size=none, dtype=np.uint64)
    total = np.zeros(none, dtype=np.uint64)
    np.add.at(total, first[met], numbers[second[met]])
    return total


def _members(
    stored: Sequence[tuple[Owner, Ids]], axes: npt.NDArray[np.int64]
) -> tuple[Member, ...]:
    owners = [stored[int(a)][0] for a in axes]
    parameters = [o for o in owners if o.kind == "parameter"] or owners
    return tuple(Member(o.name, o.dim) for o in parameters)


_RECURRENT = ("weight_ih", "weight_ih_l0")  # the first weight of a cell, and of a layer


def _name(owner: Owner, is_input: bool, taken: dict[str, int]) -> str:
    """Name a group after the module that makes its channels."""
    path, _, leaf = owner.name.rpartition(".")
    layer = owner.kind != "branch" and path and leaf in ("weight", "bias", *_RECURRENT)
    base = path if layer else owner.name
    if is_input:
        base += ".in"
    taken[base] = taken.get(base, 0) + 1
    return base if taken[base] == 1 else f"{base}:{taken[base]}"


def _frozen(stored: Sequence[tuple[Owner, Ids]], resolution: Resolution) -> list[FrozenAxis]:
    frozen = []
    for owner, ids in stored:
        fixed = (resolution.units[ids] == resolution.n_units).all(axis=-1)
        if owner.kind != "parameter" or not fixed.any():
            continue
        roots = resolution.roots[ids[fixed]].tolist()
        reason = next(
            (resolution.reasons[r] for r in roots if r in resolution.reasons),
            "nothing else depends on it",
        )
        if reason != KERNEL:
            frozen.append(
                FrozenAxis(Member(owner.name, owner.dim), reason, int(fixed.sum()), len(ids))
            )
    return frozen


def _untouched(unused: Sequence[tuple[str, tuple[int, ...]]]) -> list[FrozenAxis]:
    return [
        FrozenAxis(Member(name, dim), UNUSED, width, width)
        for name, shape in unused
        for dim, width in enumerate(shape)
        if width > 1
    ]
