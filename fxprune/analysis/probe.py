"""Check, node by node and on meta tensors, that a pruned graph has the shapes the plan says.

A size may be written where no pass rewrites it: in a module's attribute, in an unusual spelling, in
a function of the user's own. Every node is run once on inputs of the widths that a probe mask
keeps. A node that fails, or whose result has another shape than its ids say, has such a size in it,
and the channels it reads and makes are frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune._graphs import fetch, plain_arguments
from fxprune.analysis.grouping import Grouping
from fxprune.analysis.ids import Ids
from fxprune.analysis.layouts import RememberedLayouts
from fxprune.analysis.nodes import RESIZABLE, describe_node, is_torch
from fxprune.analysis.op import flat_tensors
from fxprune.analysis.trace import GraphTrace

__all__ = ["unfit_nodes"]

_SIZELESS = frozenset(f"torch.nn.modules.{kind}" for kind in ("activation", "dropout", "pooling"))
"""Where torch keeps modules that hold no number of channels; on meta tensors some are slow."""

_Drawn = dict[fx.Node, Any]
"""A value for each node that another reads."""

_PROBES = 3  # one mask may fit by chance: halves of equal width, say


def unfit_nodes(
    root: nn.Module,
    graph: fx.Graph,
    trace: GraphTrace,
    grouping: Grouping,
    rewritten: frozenset[Any],
) -> list[tuple[str, str]]:
    """Return the nodes whose shapes do not follow when channels are cut.

    Parameters
    ----------
    root : nn.Module
        Holds the modules the graph calls.
    graph : fx.Graph
    trace : GraphTrace
        What the analysis saw of this graph.
    grouping : Grouping
    rewritten : frozenset
        ``(op, target)`` of the nodes that a pass resizes, and ``(name, target)`` of nodes that
        another mode's graph was probed for; these are trusted.

    Returns
    -------
    list of (str, str)
        Name of each node, and how to name it to the user.
    """
    found: dict[str, str] = {}
    for seed in range(_PROBES):
        probe = _Probe(root, trace, grouping, rewritten, _probe_mask(grouping, seed))
        found.update(probe.run(graph))
    return list(found.items())


class _Probe:
    def __init__(
        self,
        root: nn.Module,
        trace: GraphTrace,
        grouping: Grouping,
        rewritten: frozenset[Any],
        keep: Ids,
    ) -> None:
        self.root = root
        self.trace = trace
        self.rewritten = rewritten
        self.units = grouping.resolution.units
        self.keep = keep
        self.env: dict[fx.Node, Any] = {}
        self.counts: dict[int, int] = {}
        self.draw = torch.Generator().manual_seed(0)

    def run(self, graph: fx.Graph) -> list[tuple[str, str]]:
        found = []
        with torch.no_grad():
            for node in graph.nodes:
                if node.op != "output" and not self._step(node):
                    found.append((node.name, describe_node(node)))
        return found

    def _step(self, node: fx.Node) -> bool:
        """Give the node a value; return whether it has the shapes it must have."""
        expected = self._expected(node)
        if not self._touched(node):
            if expected is not None:
                self.env[node] = expected
                return True
        elif self._trusted(node) and expected is not None:
            self.env[node] = expected
            return True
        elif expected is not None and not is_torch(self.root, node):
            self.env[node] = expected
            return self._same_values(node)
        try:
            with RememberedLayouts():
                value = self._execute(node)
        except Exception:  # noqa: BLE001  # that it fails is the answer
            self.env[node] = expected
            return not self._touched(node)
        self.env[node] = value
        fits = expected is None or _shapes(value) == _shapes(expected)
        if not fits:
            self.env[node] = expected
        return fits

    def _touched(self, node: fx.Node) -> bool:
        return any(self._cut(n.name) for n in (node, *node.all_input_nodes))

    def _cut(self, name: str) -> bool:
        values = self.trace.values.get(name, ())
        return any(
            axis is not None and self._count(axis) < len(axis) for _, ids in values for axis in ids
        )

    def _count(self, axis: Ids) -> int:
        known = self.counts.get(id(axis))  # the trace holds all of them, so no id comes twice
        if known is None:
            known = int(self.keep[self.units[axis]].all(axis=-1).sum())
            self.counts[id(axis)] = known
        return known

    def _trusted(self, node: fx.Node) -> bool:
        if node.op in ("placeholder", "get_attr"):
            return True
        if node.op == "call_module":
            module = fetch(self.root, str(node.target))
            return isinstance(module, RESIZABLE) or type(module).__module__ in _SIZELESS
        return not self.rewritten.isdisjoint(((node.op, node.target), (node.name, node.target)))

    def _expected(self, node: fx.Node) -> Any:
        """Return tensors of the kept shapes; None for a node whose value is something else."""
        shapes = self.trace.shapes.get(node.name)
        if shapes is None:
            return None
        values = self.trace.values.get(node.name)
        made = []
        for place, (shape, dtype) in enumerate(shapes):
            ids = values[place][1] if values else (None,) * len(shape)
            kept = [
                n if axis is None else self._count(axis) for n, axis in zip(shape, ids, strict=True)
            ]
            made.append(torch.empty(kept, dtype=dtype, device="meta"))
        return _filled(self.trace.forms[node.name], made)

    def _execute(self, node: fx.Node) -> Any:
        if node.name in self.trace.sizes or node.name in self.trace.whole_sizes:
            return self.trace.plain[node.name]  # `resize_literals` writes the old numbers there
        if node.op in ("placeholder", "get_attr"):
            return self.trace.plain.get(node.name)
        args = plain_arguments(node.args, self.env.__getitem__)
        kwargs = plain_arguments(node.kwargs, self.env.__getitem__)
        if node.op == "call_module":
            module = fetch(self.root, str(node.target))
            if next(module.parameters(), None) is not None:
                return self._expected(node)
            return module(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)

    def _same_values(self, node: fx.Node) -> bool:
        """Return whether foreign code computes the same for the channels that stay.

        It runs on random values, at full width and cut, with the same random numbers, and a module
        in both modes: a function that divides by its number of channels is found out here.
        """
        modes = (False, True) if node.op == "call_module" else (False,)
        drawn = self._draws(node)
        before = _versions(drawn)
        try:
            for training in modes:
                if _versions(drawn) != before:
                    drawn = self._draws(node)  # it writes to what it is given
                full, small = (self._call(node, side, training) for side in drawn)
                if not self._agree(node, full, small):
                    return False
        except Exception:  # noqa: BLE001  # that it fails is the answer
            return False
        return True

    def _draws(self, node: fx.Node) -> tuple[_Drawn, _Drawn]:
        """Return a random value for every input node: at full width, and cut; no two are one."""
        whole: _Drawn = {}
        cut: _Drawn = {}
        for source in node.all_input_nodes:
            shapes = self.trace.shapes.get(source.name)
            if shapes is None or self.trace.forms[source.name] != 0:
                whole[source], cut[source] = (copy.deepcopy(self.env[source]) for _ in range(2))
            else:
                shape, dtype = shapes[0]
                zeros = torch.zeros(shape)
                full = zeros.uniform_(generator=self.draw) if dtype.is_floating_point else zeros
                whole[source] = full = full.to(dtype)
                small = self._take(source.name, 0, full)
                cut[source] = small.clone(memory_format=torch.contiguous_format)
        return whole, cut

    def _take(self, name: str, place: int, tensor: Tensor) -> Tensor:
        """Return what is kept of a tensor, as a view where that is possible."""
        ids = self.trace.values[name][place][1] if name in self.trace.values else ()
        for dim, axis in enumerate(ids):
            if axis is not None:
                kept = np.flatnonzero(self.keep[self.units[axis]].all(axis=-1))
                if len(kept) and kept[-1] - kept[0] + 1 == len(kept):
                    tensor = tensor.narrow(dim, int(kept[0]), len(kept))
                else:
                    tensor = tensor.index_select(dim, torch.from_numpy(kept))
        return tensor

    def _call(self, node: fx.Node, given: _Drawn, training: bool) -> Any:
        args = plain_arguments(node.args, given.__getitem__)
        kwargs = plain_arguments(node.kwargs, given.__getitem__)
        target: Any = node.target
        if node.op == "call_method":
            target, args = getattr(args[0], str(node.target)), args[1:]
        if node.op == "call_module":
            target = copy.deepcopy(fetch(self.root, str(node.target))).cpu().train(training)
        with torch.random.fork_rng(devices=[]):
            # not torch.manual_seed: that formats a stack trace for every kind of accelerator
            torch.default_generator.manual_seed(0)
            return target(*args, **kwargs)

    def _agree(self, node: fx.Node, full: Any, small: Any) -> bool:
        wholes, cuts = flat_tensors(full), flat_tensors(small)
        return len(wholes) == len(cuts) and all(
            _close(self._take(node.name, place, a), b)
            for place, (a, b) in enumerate(zip(wholes, cuts, strict=True))
        )


def _close(a: Tensor, b: Tensor) -> bool:
    # most are equal, and to find that out takes a fraction of the time
    return torch.equal(a, b) or torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)


def _versions(drawn: tuple[_Drawn, _Drawn]) -> list[int]:
    """Return numbers that change when a tensor is written to."""
    return [t._version for side in drawn for t in flat_tensors(side)]


def _probe_mask(grouping: Grouping, turn: int) -> Ids:
    """Return a mask that keeps a quarter, half or three quarters of a group, from either end.

    Neighbouring groups keep different shares: the halves of a split must not fit by chance.
    """
    keep = [np.ones(0, dtype=bool)]
    for number, group in enumerate(grouping.groups):
        count = max(1, group.size * (1 + (number + turn) % 3) // 4)
        mine = np.arange(group.size) < count
        keep.append(mine if turn % 2 else mine[::-1])
    return np.concatenate([*keep, [True]])


def _filled(form: Any, tensors: list[Tensor]) -> Any:
    """Put tensors into the nest that `form` describes, see `GraphTrace.forms`."""
    if isinstance(form, int):
        return tensors[form]
    if isinstance(form, dict):
        return {k: _filled(f, tensors) for k, f in form.items()}
    return tuple(_filled(f, tensors) for f in form)


def _shapes(value: Any) -> list[tuple[int, ...]]:
    if isinstance(value, Tensor):
        return [tuple(value.shape)]
    if isinstance(value, (list, tuple)):
        return [shape for item in value for shape in _shapes(item)]
    if isinstance(value, Mapping):
        return [shape for item in value.values() for shape in _shapes(item)]
    return []
