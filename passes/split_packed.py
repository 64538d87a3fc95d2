"""Take packed projections apart before they are reshaped.

One linear layer often makes query, key and value at once, and a reshape takes its output apart::

    (B, N, C)  ->  (B, N, 3, H, D)  ->  permute  ->  three tensors (B, H, N, D)

The tensor in the middle is a rectangle, so cutting it would cut the same positions out of all
three. Split first and reshaped after, each has widths of its own. The three may lie behind the
heads as well (``(B, N, H, 3, D)``, or ``(B, N, H, 3 D)`` split along its last axis): the channels
are then put in order by a look-up first.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch.fx import GraphModule, Node

from fxprune.analysis.axes import reshape_blocks
from fxprune.analysis.trace import GraphTrace
from fxprune.passes._spellings import (
    COPIES,
    RESHAPES,
    SELECTS,
    SPLITS,
    UNBINDS,
    UNFLATTENS,
    listed,
    permuted,
)
from fxprune.passes.base import Edit, Pass, PassResult

__all__ = ["SplitPacked"]


@dataclass(frozen=True, slots=True)
class _Packed:
    """A reshape of one axis into several, of which one is taken apart at the end.

    Attributes
    ----------
    source, reshape : Node
    axis : int
        The axis of `source` that is split.
    inside : tuple of int
        The axes of the result that it becomes.
    part : int
        Which of these is taken apart.
    order : tuple of int
        Axes of the reshape's result, in the order they have when that happens.
    copied : bool
        Whether the result is copied on the way.
    sizes : tuple of int
        Widths of the parts along it; of ones when `drops`.
    drops : bool
        Whether the parts lose the axis.
    ends : dict of Node to int
        The nodes that stand for a part, and for which.
    """

    source: Node
    reshape: Node
    axis: int
    inside: tuple[int, ...]
    part: int
    order: tuple[int, ...]
    copied: bool
    sizes: tuple[int, ...]
    drops: bool
    ends: dict[Node, int]


@final
@dataclass(frozen=True, slots=True, eq=False)
class SplitPacked(Pass):
    """Put the split of a packed projection before its reshape.

    Parameters
    ----------
    trace : GraphTrace
        What the analysis saw of this very graph; it knows the shapes.
    """

    name: ClassVar[str] = "split_packed"

    trace: GraphTrace

    def run(self, gm: GraphModule) -> PassResult:
        """Find and replace every packed projection."""
        edits = []
        for node in list(gm.graph.nodes):
            found = _Search(self.trace, node).run()
            if found is not None:
                _replace(gm, found, self._shape(found.reshape))
                why = "each part has widths of its own"
                before, after = f"reshape of {len(found.sizes)} parts", "split, then reshape"
                edits.append(Edit(self.name, node.name, before, after, why))
        return PassResult(gm, changed=bool(edits), edits=tuple(edits))

    def _shape(self, node: Node) -> tuple[int, ...]:
        return self.trace.shapes[node.name][0][0]


class _Search:
    """Looks for a packed projection that begins with one node."""

    def __init__(self, trace: GraphTrace, reshape: Node) -> None:
        self.trace = trace
        self.reshape = reshape
        self.copied = False

    def run(self) -> _Packed | None:
        node = self.reshape
        source = node.args[0] if node.args else None
        if node.target not in (*RESHAPES, *UNFLATTENS) or not isinstance(source, Node):
            return None
        old, new = self._shape(source), self._shape(node)
        carried = self.trace.values.get(source.name)
        if old is None or new is None or carried is None or _entries(node, len(new)) is None:
            return None
        last, order = self._follow(node, list(range(len(new))))
        taken = self._taken_apart(last, len(order))
        if taken is None:
            return None
        place, sizes, drops, ends = taken
        part = order[place]
        if sum(sizes) != new[part] or len(sizes) < 2:
            return None
        for ins, outs in reshape_blocks(old, new):
            channels = len(ins) == 1 and carried[0][1][ins[0]] is not None
            if channels and part in outs and len(outs) > 1:
                inside, turned = tuple(outs), tuple(order)
                return _Packed(
                    source, node, ins[0], inside, part, turned, self.copied, sizes, drops, ends
                )
        return None

    def _shape(self, node: Node) -> tuple[int, ...] | None:
        known = self.trace.shapes.get(node.name)
        return known[0][0] if known is not None and self.trace.forms[node.name] == 0 else None

    def _follow(self, node: Node, order: list[int]) -> tuple[Node, list[int]]:
        """Follow permutations and copies; return the last of them and the order of the axes."""
        while len(node.users) == 1:
            (user,) = node.users
            if user.args[:1] != (node,):
                break
            if user.target in COPIES:
                self.copied = True
            else:
                turned = permuted(user, order)
                if turned is None:
                    break
                order = turned
            node = user
        return node, order

    def _taken_apart(
        self, last: Node, ndim: int
    ) -> tuple[int, tuple[int, ...], bool, dict[Node, int]] | None:
        """Return (axis, widths of the parts, whether the axis goes, part of each end)."""
        users = list(last.users)
        if len(users) == 1 and users[0].target in (*UNBINDS, *SPLITS):
            return self._listed(users[0], ndim)
        shape = self._shape(last)
        found = [_indexed(user, last, ndim) for user in users]
        axes = {entry[0] for entry in found if entry is not None}
        if shape is None or None in found or len(axes) != 1:
            return None
        (axis,) = axes
        entries = [entry[1] for entry in found if entry is not None]
        if all(isinstance(entry, int) for entry in entries):
            ends = {u: e % shape[axis] for u, e in zip(users, entries, strict=True)}
            return axis, (1,) * shape[axis], True, ends
        if not all(isinstance(entry, slice) for entry in entries):
            return None
        return _sliced(users, entries, axis, shape[axis])

    def _listed(
        self, node: Node, ndim: int
    ) -> tuple[int, tuple[int, ...], bool, dict[Node, int]] | None:
        """Unbind, chunk and split return a list, of which the users take one entry each."""
        drops = node.target in UNBINDS
        place = 1 if drops else 2
        given = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
        parts = self.trace.shapes.get(node.name)
        simple = all(
            u.target is operator.getitem and isinstance(u.args[1], int) for u in node.users
        )
        if not isinstance(given, int) or parts is None or not simple:
            return None
        axis = given % ndim
        sizes = (1,) * len(parts) if drops else tuple(shape[axis] for shape, _ in parts)
        ends = {u: int(u.args[1]) % len(sizes) for u in node.users}  # type: ignore[arg-type]
        return axis, sizes, drops, ends


def _indexed(user: Node, last: Node, ndim: int) -> tuple[int, Any] | None:
    """Return the axis and the number or slice that a node takes of it; None if it does more."""
    if user.args[:1] != (last,):
        return None
    if user.target in SELECTS:
        numbers = listed(user)
        known = all(isinstance(n, int) for n in numbers)
        return (numbers[0] % ndim, numbers[1]) if known else None
    if user.target is not operator.getitem:
        return None
    index = user.args[1]
    entries = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in entries:
        at = entries.index(Ellipsis)
        entries[at : at + 1] = [slice(None)] * (ndim - len(entries) + 1)
    picked = [(d, e) for d, e in enumerate(entries) if e != slice(None)]
    if len(picked) != 1 or not isinstance(picked[0][1], (int, slice)):
        return None
    return picked[0]


def _sliced(
    users: list[Node], entries: list[Any], axis: int, width: int
) -> tuple[int, tuple[int, ...], bool, dict[Node, int]] | None:
    """Slices are parts when they cover the axis without overlap."""
    plain = all(isinstance(n, (int, type(None))) for e in entries for n in (e.start, e.stop))
    if not plain or any(e.step not in (None, 1) for e in entries):
        return None
    ranges = [range(width)[entry] for entry in entries]
    bounds = sorted({(r.start, r.stop) for r in ranges})
    if [i for start, stop in bounds for i in range(start, stop)] != list(range(width)):
        return None
    numbers = {bound: i for i, bound in enumerate(bounds)}
    ends = {u: numbers[r.start, r.stop] for u, r in zip(users, ranges, strict=True)}
    return axis, tuple(stop - start for start, stop in bounds), False, ends


def _entries(node: Node, ndim: int) -> list[Any] | None:
    """Return the sizes a reshape is given, one per axis; an unflatten leaves the others None."""
    if node.target in UNFLATTENS:
        sizes = node.args[2] if len(node.args) > 2 else node.kwargs.get("sizes")
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        if not isinstance(sizes, (list, tuple)) or not isinstance(dim, int):
            return None
        start = dim % (ndim - len(sizes) + 1)
        return [None] * start + list(sizes) + [None] * (ndim - start - len(sizes))
    flat = listed(node)
    known = len(flat) == ndim and all(isinstance(e, (int, Node)) for e in flat)
    return flat if known else None


def _replace(gm: GraphModule, found: _Packed, shape: tuple[int, ...]) -> None:
    graph, source = gm.graph, found.source
    at = found.inside.index(found.part)
    before = math.prod(shape[d] for d in found.inside[:at])
    after = math.prod(shape[d] for d in found.inside[at + 1 :])
    with graph.inserting_before(found.reshape):
        if before > 1:
            source = _reordered(gm, found, before, after)
        lengths = [before * n * after for n in found.sizes]
        pieces = graph.call_function(torch.split, (source, lengths), {"dim": found.axis})
        pieces.meta.update(found.reshape.meta)
        made = {
            number: _part(graph.call_function(operator.getitem, (pieces, number)), found, number)
            for number in sorted(set(found.ends.values()))
        }
    doomed = set(found.ends)
    for end, number in found.ends.items():
        end.replace_all_uses_with(made[number])
    while doomed:
        node = doomed.pop()
        if not node.users and node is not found.source:
            doomed |= set(node.all_input_nodes)
            graph.erase_node(node)


def _reordered(gm: GraphModule, found: _Packed, before: int, after: int) -> Node:
    """Put the channels of each part side by side."""
    box = torch.arange(before * sum(found.sizes) * after).view(before, -1, after)
    order = torch.cat([part.flatten() for part in box.split(list(found.sizes), dim=1)])  # type: ignore[no-untyped-call]
    name = f"packed_{found.reshape.name}"
    gm.register_buffer(name, order, persistent=False)
    numbers = gm.graph.create_node("get_attr", name)
    look_up = gm.graph.call_function(torch.index_select, (found.source, found.axis, numbers))
    look_up.meta.update(found.reshape.meta)
    return look_up


def _part(piece: Node, found: _Packed, number: int) -> Node:
    """Reshape and permute one part as the whole was."""
    graph, part = piece.graph, found.part
    entries = _entries(found.reshape, len(found.order)) or []
    kept = [d for d in range(len(entries)) if d != part or not found.drops]
    sizes = [found.sizes[number] if d == part else entries[d] for d in kept]
    if found.reshape.target in UNFLATTENS:
        sizes = [size for size in sizes if size is not None]
        node = graph.call_method("unflatten", (piece, found.axis, tuple(sizes)))
    else:
        node = graph.call_method("reshape", (piece, *sizes))
    order = [kept.index(d) for d in found.order if d in kept]
    if order != sorted(order):
        node = graph.call_method("permute", (node, *order))
    return graph.call_method("contiguous", (node,)) if found.copied else node
