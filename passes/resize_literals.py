"""Rewrite the literal sizes of a graph: of view, split, slice, pad, groups, normalized_shape.

The analysis knows the ids of every axis of every value, so a node's new sizes are the kept counts
of its own output; nothing is inferred from the old sizes. Where a graph computes a size from a
pruned axis (``x.size(1) // 2``), the number it had before pruning is written in its place: sizes
that matter are all rewritten, and a number that was used for anything else (a scale, ``C ** -0.5``)
keeps its value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx import GraphModule, Node

from fxprune.analysis.ids import Ids
from fxprune.analysis.plan import Plan
from fxprune.errors import InternalError
from fxprune.passes._norm_sizes import NORM_RULES
from fxprune.passes._pruned_view import PrunedView, get_arg, set_arg, unpack
from fxprune.passes._spellings import listed
from fxprune.passes.base import Edit, Pass, PassResult

__all__ = ["REWRITTEN", "ResizeLiterals"]

Sizes = list[Any]

_FITTED = "fxprune_fitted"  # marks the nodes that this pass made


@final
@dataclass(frozen=True, slots=True, eq=False)
class ResizeLiterals(Pass):
    """Make the literal sizes of a graph fit its sliced tensors.

    Parameters
    ----------
    plan : Plan
    keep : bool array, shape (n_units,)
    mode : str
        Which of the plan's graphs this is.
    """

    name: ClassVar[str] = "resize_literals"

    plan: Plan
    keep: npt.NDArray[np.bool_]
    mode: str = "eval"

    def run(self, gm: GraphModule) -> PassResult:
        """Rewrite every node with a size on a prunable axis."""
        edits = []
        view = PrunedView(self.plan, self.keep, self.mode)
        for node in list(gm.graph.nodes):
            edits += self._bake(gm, node, view)
        for node in list(gm.graph.nodes):
            rewrite = _RULES.get(_key(node))
            if rewrite is None:
                continue
            before = node.format_node()
            rewrite(node, view)
            after = node.format_node()
            if before != after:
                edits.append(
                    Edit(self.name, node.name, str(before), str(after), "sizes are kept counts")
                )
        return PassResult(gm, changed=bool(edits), edits=tuple(edits))

    def _bake(self, gm: GraphModule, node: Node, view: PrunedView) -> list[Edit]:
        """Write the width of a pruned axis, or a whole shape with such axes, as it was."""
        old: Any
        if node.name in view.trace.sizes:
            source, dim = view.trace.sizes[node.name]
            old = view.old_width(source, dim)
        else:
            old = self._old_shape(node, view)
        if old is None:
            return []
        for user in list(node.users):
            if isinstance(old, tuple) and user.name in view.trace.sizes:
                continue
            if isinstance(old, tuple) and any(user is entry for entry in old):
                continue
            user.args = fx.map_arg(user.args, lambda n: old if n is node else n)
            user.kwargs = fx.map_arg(user.kwargs, lambda n: old if n is node else n)
        if not node.users:
            gm.graph.erase_node(node)
        return [
            Edit(self.name, node.name, "the width of a pruned axis", str(old), "keeps its value")
        ]

    def _old_shape(self, node: Node, view: PrunedView) -> tuple[Any, ...] | None:
        """Return the entries of a shape: numbers on pruned axes, the others still computed."""
        if node.name not in view.trace.whole_sizes:
            return None
        source, dims = view.trace.whole_sizes[node.name]
        widths = [view.old_width(source, dim) for dim in dims]
        done = {user for user in node.users if _FITTED in user.meta}
        others = [u for u in node.users if u.name not in view.trace.sizes and u not in done]
        if not others or all(width is None for width in widths):
            return None
        entries: list[Any] = []
        for place, width in enumerate(widths):
            if width is None:
                with node.graph.inserting_after(node):
                    entries.append(node.graph.call_function(operator.getitem, (node, place)))
                entries[-1].meta[_FITTED] = True
            else:
                entries.append(width)
        return tuple(entries)


def _key(node: Node) -> Any:
    return (node.op, node.target) if node.op in ("call_method", "call_function") else None


def _sizes(node: Node, view: PrunedView) -> None:
    """view, reshape, expand: sizes as separate arguments, as one list, or as one torch.Size."""
    values = view.values(node)
    if len(values) != 1 or not any(view.cut(i) for i in values[0][1]):
        return
    if len(node.args) > 1 and isinstance(node.args[1], torch.dtype):
        return
    shape, ids = values[0]
    keyword = next((k for k in ("shape", "size") if k in node.kwargs), None)
    given = node.kwargs[keyword] if keyword else node.args[1:]
    rest: tuple[Any, ...] = ()
    whole = node.target == "new_full" or len(node.args) == 2
    if not keyword and whole and not isinstance(node.args[1], int):
        given, rest = node.args[1], node.args[2:]
        if isinstance(given, Node) and len(shape) > 1:
            given = unpack(node, given, len(shape))
    entries: Sizes = [given] if isinstance(given, (Node, int)) else list(given)  # type: ignore[arg-type]
    for d, axis in enumerate(ids):
        if view.cut(axis) and entries[d] != -1:
            entries[d] = _fitted(node, entries[d], view.count(axis, shape[d]), shape[d], view)
    if keyword:
        node.kwargs = {**node.kwargs, keyword: tuple(entries)}
    else:
        node.args = (node.args[0], tuple(entries), *rest)


def _repeat(node: Node, view: PrunedView) -> None:
    """Repeat an axis of width 1 as often as positions of it are kept."""
    values = view.values(node)
    if len(values) != 1 or not any(view.cut(i) for i in values[0][1]):
        return
    shape, ids = values[0]
    times, was = listed(node), view.listed(node)
    for place in range(-len(times), 0):
        if was[place] == shape[place] and view.cut(ids[place]):
            kept = view.count(ids[place], shape[place])
            times[place] = _fitted(node, times[place], kept, shape[place], view)
    node.args, node.kwargs = (get_arg(node, 0, "input"), tuple(times)), {}


def _factory(node: Node, view: PrunedView) -> None:
    """zeros, ones, full: sizes as separate arguments or as one list."""
    values = view.values(node)
    if len(values) != 1 or not any(view.cut(i) for i in values[0][1]):
        return
    shape, ids = values[0]
    first = get_arg(node, 0, "size")
    many = isinstance(first, (list, tuple))
    entries: Sizes = list(first if many else node.args)
    for d, axis in enumerate(ids):
        if view.cut(axis):
            entries[d] = _fitted(node, entries[d], view.count(axis, shape[d]), shape[d], view)
    if many:
        set_arg(node, 0, "size", tuple(entries))
    else:
        node.args = tuple(entries)


def _fitted(node: Node, entry: Any, kept: int, full: int, view: PrunedView) -> Any:
    """Return a new size; one computed from several widths, the batch among them, stays computed."""
    if not isinstance(entry, Node) or entry.name in view.trace.sizes:
        return kept
    if _FITTED in entry.meta:
        return entry
    with node.graph.inserting_before(node):
        scaled = node.graph.call_function(operator.mul, (entry, kept))
        fitted = node.graph.call_function(operator.floordiv, (scaled, full))
    fitted.meta[_FITTED] = True
    return fitted


def _unflatten(node: Node, view: PrunedView) -> None:
    values = view.values(node)
    if len(values) != 1:
        return
    shape, ids = values[0]
    dim = get_arg(node, 1, "dim")
    entries = list(get_arg(node, 2, "sizes"))
    start = dim % (len(shape) - len(entries) + 1)
    for i in range(len(entries)):
        if view.cut(ids[start + i]) and entries[i] != -1:
            entries[i] = view.count(ids[start + i], shape[start + i])
    set_arg(node, 2, "sizes", tuple(entries))


def _split(node: Node, view: PrunedView) -> None:
    """Split and chunk: the runs become a list of kept counts."""
    values = view.values(node)
    if not values:
        return
    dim = get_arg(node, 2, "dim", 0) % len(values[0][0])
    if not any(view.cut(ids[dim]) for _, ids in values):
        return
    runs = [view.count(ids[dim], shape[dim]) for shape, ids in values]
    node.args = (get_arg(node, 0, "tensor", node.kwargs.get("input")), runs)
    node.kwargs = {"dim": dim}
    node.target = "split" if node.op == "call_method" else torch.split


def _slice_bounds(ids: Ids, start: Any, stop: Any, view: PrunedView) -> tuple[int, int]:
    first, last, _ = slice(start, stop).indices(len(ids))
    kept = view.plan.kept(ids, view.keep)
    return int(kept[:first].sum()), int(kept[:last].sum())


def _getitem(node: Node, view: PrunedView) -> None:
    """``x[:, a:b]``: bounds count the kept positions before them; look-ups get new numbers."""
    source = view.values(node.args[0])
    if len(source) != 1 or not any(view.cut(i) for i in source[0][1]):
        return
    shape, ids = source[0]
    was, index = view.old(node, 1, "index"), node.args[1]
    was_entries = list(was) if isinstance(was, tuple) else [was]
    entries = list(index) if isinstance(index, tuple) else [index]
    dim = 0
    for i, entry in enumerate(was_entries):
        if entry is Ellipsis:
            dim += len(shape) - sum(
                e is not Ellipsis and not _is_new_axis(e, entries[k])
                for k, e in enumerate(was_entries)
            )
            continue
        if _is_new_axis(entry, entries[i]):
            continue
        axis = ids[dim]
        if axis is not None and view.cut(axis):
            if (node.name, dim) in view.trace.lookups:
                _select_before(node, dim, view)
                entries[i] = slice(None)
            elif isinstance(entry, slice) and (entry.start, entry.stop) != (None, None):
                entries[i] = slice(*_slice_bounds(axis, entry.start, entry.stop, view))
        dim += 1
    node.args = (node.args[0], tuple(entries) if isinstance(index, tuple) else entries[0])


def _is_new_axis(was: Any, now: Any) -> bool:
    """Tell None in an index from a tensor, of which only the node is known."""
    return was is None and not isinstance(now, Node)


def _renumbered(node: Node, dim: int, view: PrunedView) -> Node:
    """Return a node for the numbers of a look-up among the positions that are kept."""
    axis = view.values(get_arg(node, 0, "input"))[0][1][dim]
    owner = node.graph.owning_module
    if axis is None or owner is None:
        raise InternalError(f"{node.name} has no look-up to rewrite")
    table = view.trace.lookups[node.name, dim]
    kept = view.plan.kept(axis, view.keep)
    numbers = (np.cumsum(kept) - 1)[table[kept[table]]]
    name = f"fxprune_index_{node.name}_{dim}"
    device = next((p.device for p in owner.parameters()), torch.device("cpu"))
    owner.register_buffer(name, torch.from_numpy(numbers).to(device), persistent=False)
    with node.graph.inserting_before(node):
        return node.graph.create_node("get_attr", name)


def _select_before(node: Node, dim: int, view: PrunedView) -> None:
    """Take the kept positions of a look-up before the node that did it."""
    numbers = _renumbered(node, dim, view)
    with node.graph.inserting_before(node):
        taken = node.graph.call_function(torch.index_select, (node.args[0], dim, numbers))
    node.args = (taken, *node.args[1:])


def _index_select(node: Node, view: PrunedView) -> None:
    source = view.values(get_arg(node, 0, "input"))
    if len(source) != 1:
        return
    dim = get_arg(node, 1, "dim") % len(source[0][0])
    if (node.name, dim) in view.trace.lookups and view.cut(source[0][1][dim]):
        set_arg(node, 2, "index", _renumbered(node, dim, view))


def _narrow(node: Node, view: PrunedView) -> None:
    source = view.values(get_arg(node, 0, "input"))
    if len(source) != 1:
        return
    dim = get_arg(node, 1, "dim") % len(source[0][0])
    axis = source[0][1][dim]
    if axis is None or not view.cut(axis):
        return
    start, length = view.old(node, 2, "start"), view.old(node, 3, "length")
    start += len(axis) if start < 0 else 0
    first, last = _slice_bounds(axis, start, start + length, view)
    set_arg(node, 2, "start", first)
    set_arg(node, 3, "length", last - first)


def _pad(node: Node, view: PrunedView) -> None:
    """Count padded positions by their own ids, cropped ones by those of the input."""
    values, source = view.values(node), view.values(get_arg(node, 0, "input"))
    if len(values) != 1:
        return
    shape, ids = values[0]
    widths = list(view.old(node, 1, "pad"))
    for side, width in enumerate(widths):
        place = len(shape) - 1 - side // 2
        axis = ids[place] if width > 0 else source[0][1][place] if source else None
        if width and axis is not None and view.cut(axis):
            kept = view.plan.kept(axis, view.keep)
            ends = kept[: abs(width)] if side % 2 == 0 else kept[-abs(width) :]
            widths[side] = int(ends.sum()) * (1 if width > 0 else -1)
    set_arg(node, 1, "pad", tuple(widths))


def _groups(node: Node, view: PrunedView) -> None:
    """Give a functional convolution as many groups as its kept input channels fill."""
    groups = get_arg(node, 6, "groups", 1)
    source, weight = (view.values(get_arg(node, i, n)) for i, n in ((0, "input"), (1, "weight")))
    if groups == 1 or len(source) != 1 or len(weight) != 1:
        return
    (x_shape, x_ids), (w_shape, w_ids) = source[0], weight[0]
    channel = 1 - len(w_shape)
    inputs = view.count(x_ids[channel], x_shape[channel])
    if "transpose" in getattr(node.target, "__name__", ""):
        kept = inputs if x_shape[channel] == groups else groups
    else:
        kept = inputs // view.count(w_ids[1], w_shape[1])
    set_arg(node, 6, "groups", kept)


def _attention(node: Node, view: PrunedView) -> None:
    """Attention without a scale of its own computes one from the width of the query: pin it."""
    query = view.values(get_arg(node, 0, "query"))
    if len(query) == 1 and view.cut(query[0][1][-1]) and node.kwargs.get("scale") is None:
        node.kwargs = {**node.kwargs, "scale": query[0][0][-1] ** -0.5}


_METHODS: dict[Callable[[Node, PrunedView], None], tuple[str, ...]] = {
    _sizes: (
        *("view", "reshape", "expand", "broadcast_to"),
        *("new_empty", "new_zeros", "new_ones", "new_full"),
    ),
    _repeat: ("repeat", "tile"),
    _unflatten: ("unflatten",),
    _split: ("split", "chunk", "split_with_sizes"),
    _index_select: ("index_select",),
    _narrow: ("narrow",),
}
_FUNCTIONS: dict[Callable[[Node, PrunedView], None], tuple[Any, ...]] = {
    _sizes: (torch.reshape, torch.broadcast_to),
    _repeat: (torch.tile,),
    _factory: (torch.empty, torch.zeros, torch.ones, torch.full),
    _unflatten: (torch.unflatten,),
    _split: (torch.split, torch.chunk, torch.split_with_sizes),
    _getitem: (operator.getitem,),
    _index_select: (torch.index_select,),
    _narrow: (torch.narrow,),
    _pad: (F.pad,),
    _attention: (
        F.scaled_dot_product_attention,
        torch.ops.aten.scaled_dot_product_attention.default,
    ),
    _groups: (
        *(F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    ),
}
_RULES: dict[Any, Callable[[Node, PrunedView], None]] = {
    **{("call_method", name): rule for rule, names in _METHODS.items() for name in names},
    **{("call_function", f): rule for rule, functions in _FUNCTIONS.items() for f in functions},
    **NORM_RULES,
}

REWRITTEN = frozenset(_RULES)
"""``(op, target)`` of every node this pass resizes."""
