"""The dispatch mode that pushes channel ids below torch functions, one executed operator at a time.

The model runs on meta tensors (shapes without data). Parameters and floating-point buffers get
fresh ids on every axis when they are first used; each operator's rule then says what its result
carries. Small constants (index tables, aranges) keep their real value beside the meta tensor, so
that a table look-up can be followed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune._compat import DispatchMode, is_mutable, is_pointwise, is_view, op_name
from fxprune.analysis.axes import TensorIds, none_ids
from fxprune.analysis.foreign import run_operator
from fxprune.analysis.ids import Ids, IdSpace, Owner
from fxprune.analysis.known import numbers_of_masks, replaced
from fxprune.analysis.op import Op, TensorRecord, flat_tensors
from fxprune.errors import FxpruneError, InternalError, UnsupportedOpError
from fxprune.rules import Registry, Rule
from fxprune.rules.pointwise import pointwise

__all__ = ["Contraction", "MacsTerm", "StatisticSite", "Tracker", "WeightSite"]

_CONST_LIMIT = 1 << 20
_FACTORIES = {
    f"aten::{name}"
    for name in ("arange", "zeros", "ones", "full", "linspace", "scalar_tensor", "eye")
}
_MADE = {
    f"aten::{new}{name}" for new in ("", "new_") for name in ("empty", "zeros", "ones", "full")
}
_MAKES_IDS = _MADE | {"aten::expand", "aten::repeat"}  # of positions that they put there
_UNMOVED = frozenset(("aten::detach", "aten::alias"))  # views that hold no size
_META = torch.device("meta")

Contraction = tuple[str, str, Ids]  # consumer node, node whose value is gated, ids
WeightSite = tuple[str, str, str, int]  # node, parameter in its module and in the model, axis
StatisticSite = tuple[str, str, tuple[int, ...]]  # node, its input node, axes it runs over
MacsTerm = tuple[int, tuple[Ids, ...], str]
"""A constant factor, runs of ids whose kept counts multiply it, and the node that computes."""


class Tracker(DispatchMode):  # type: ignore[no-untyped-call]
    """Runs operators on meta tensors and keeps the ids of every tensor.

    Parameters
    ----------
    space : IdSpace
        Shared by all graphs of one model.
    rules : Registry
        Operator rules.
    unknown : {"freeze", "error"}
        What to do with an operator that has no rule.

    Attributes
    ----------
    node, where : str
        The graph node being executed, and how to name it to the user; set by the interpreter.
    inputs : dict[int, list[str]]
        Graph-level values that the current node reads: ``id(tensor)`` to node names.
    held : dict[int, str]
        ``id(tensor)`` to the name of the parameters of the current node's module, where their
        columns can be gated.
    border : str
        What the graph reads where it reads its inputs, for reasons.
    contractions, weights, statistics, terms
        What was recorded, see the type aliases of this module.
    """

    def __init__(self, space: IdSpace, rules: Registry, unknown: str = "freeze") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.space = space
        self.node = ""
        self.where = ""
        self.border = "an input of the model"
        self.inputs: dict[int, list[str]] = {}
        self.opaque = False
        self.mutated: list[Tensor] = []
        self.contractions: list[Contraction] = []
        self.weights: list[WeightSite] = []
        self.held: dict[int, str] = {}
        self.statistics: list[StatisticSite] = []
        self.terms: list[MacsTerm] = []
        self.lookups: dict[tuple[str, int], Ids] = {}
        self.rewrites_lookups = False
        self.has_twin = False
        self.rules = rules
        self.unknown = unknown
        self._records: dict[int, TensorRecord] = {}
        self._stored: dict[int, tuple[Owner, Tensor, Tensor]] = {}
        self._meta_of: dict[int, tuple[Tensor, Tensor]] = {}

    # -- tensors
    def to_meta(self, real: Tensor, name: str = "", kind: str = "node") -> Tensor:
        """Return the meta twin of a real tensor.

        The same tensor always gives the same twin, so that tied parameters stay tied.

        Parameters
        ----------
        real : Tensor
        name : str
            Its fully qualified name in the model; empty for a constant.
        kind : {"parameter", "buffer", "node"}
            A node's constant and an integer buffer carry no ids.
        """
        if id(real) in self._meta_of:
            return self._meta_of[id(real)][1]
        twin = torch.empty_strided(real.shape, real.stride(), dtype=real.dtype, device=_META)
        # made under this very mode, the twin was recorded as a plain result
        self._records.pop(id(twin), None)
        self._meta_of[id(real)] = (real, twin)
        if kind != "node" and real.dtype.is_floating_point:
            self._stored[id(twin)] = (Owner(name, 0, kind), twin, real)
        else:
            known = real if real.numel() <= _CONST_LIMIT and real.device != _META else None
            self._records[id(twin)] = TensorRecord(twin, none_ids(twin.dim()), twin, known, True)
        return twin

    def seen(self) -> set[str]:
        """Return the names of the parameters and floating-point buffers the graphs refer to."""
        return {owner.name for owner, _, _ in self._stored.values()}

    def record(self, tensor: Tensor) -> TensorRecord:
        """Return what is known of a tensor."""
        found = self._records.get(id(tensor))
        if found is not None:
            return found
        stored = self._stored.get(id(tensor))
        if stored is None:
            made = TensorRecord(tensor, none_ids(tensor.dim()), tensor)
        else:
            owner = stored[0]
            ids: TensorIds = tuple(
                None if width == 1 else self.space.fresh(width, Owner(owner.name, dim, owner.kind))
                for dim, width in enumerate(tensor.shape)
            )
            made = TensorRecord(tensor, ids, tensor, static=True)
        self._records[id(tensor)] = made
        return made

    def finish_node(self, value: Any) -> None:
        """Make the tensors in a node's value graph-level values."""
        for tensor in flat_tensors(value):
            self.record(tensor).root = tensor

    def mark_inputs(self, value: Any) -> None:
        """Mark tensors as inputs of the model, except those that carry ids from another graph."""
        for tensor in flat_tensors(value):
            record = self.record(tensor)
            record.from_input = all(axis is None for axis in record.ids)

    def carry(self, tensor: Tensor, ids: TensorIds | None) -> None:
        """Give a tensor the ids that it carries from another graph."""
        if ids is not None:
            self._records[id(tensor)] = TensorRecord(tensor, ids, tensor)

    # -- what rules record
    def add_contraction(self, record: TensorRecord, dim: int) -> None:
        """See `Op.contract`."""
        ids = record.ids[dim]
        sources = self.inputs.get(id(record.root))
        if ids is None:
            return
        if sources is None and id(record.tensor) in self.held:
            owner = self._stored[id(record.tensor)][0]
            self.weights.append((self.node, self.held[id(record.tensor)], owner.name, dim))
        elif sources is None:
            self.space.freeze(
                ids, f"{self.where} sums over it inside one opaque module or function"
            )
        else:
            self.contractions += [(self.node, source, ids) for source in sources]

    def add_statistic(self, record: TensorRecord, dims: tuple[int, ...]) -> bool:
        """See `Op.statistic`."""
        source = self._graph_value(record) if self.has_twin else None
        if source is None:
            return False
        self.statistics.append((self.node, source, dims))
        return True

    def _graph_value(self, record: TensorRecord) -> str | None:
        """Return the node input that a tensor is, or that it equals in shape and ids.

        A function may cast, copy or square its input before it takes a statistic of it.
        """
        for key, sources in self.inputs.items():
            given = self._records.get(key)
            if given is record or (given is not None and _same_ids(given, record)):
                return sources[0]
        return None

    def add_macs(self, factor: int, runs: tuple[Ids, ...]) -> None:
        """See `Op.macs`."""
        self.terms.append((factor, runs, self.node))

    def add_lookup(self, record: TensorRecord, dim: int, table: Ids) -> bool:
        """See `Op.lookup`; only where the graph itself does it, not a function inside."""
        if not self.rewrites_lookups or id(record.root) not in self.inputs:
            return False
        if record.tensor.shape != record.root.shape:
            return False
        self.lookups[self.node, dim] = table
        return True

    # -- dispatch
    def run_whole(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shapes: list[tuple[int, ...]],
    ) -> Any:
        """Apply the rule of an operator without running it; see `fxprune.analysis.whole`."""
        args, kwargs = self._twins(args), self._twins(kwargs)
        made = tuple(torch.empty(s, dtype=args[0].dtype, device=_META) for s in shapes)
        out = made if len(made) > 1 else made[0]
        found = self.rules.find(name)
        op = Op(self, name, args, kwargs, out, self.where)
        if found is None:
            self._no_rule(op, op.tensors())
        else:
            self._run_rule(found, op)
        static = all(self.record(t).static for t in op.tensors())
        for tensor in made:
            self.record(tensor).static = static
        return out

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Any = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = flat_tensors([args, kwargs])
        if any(t.device != _META for t in tensors):
            args, kwargs = self._twins(args), self._twins(kwargs)
            tensors = flat_tensors([args, kwargs])
        name = op_name(func)
        if name == "aten::index":
            args = numbers_of_masks(args, lambda t: self.record(t).const, self.to_meta)
            tensors = flat_tensors([args, kwargs])
        consts = self._constant_inputs(func, tensors)
        if name == "aten::_local_scalar_dense" and consts:
            return consts[id(tensors[0])].item()
        out = run_operator(func, args, kwargs, consts)
        results = flat_tensors(out)
        if any(t.device != _META for t in results):
            out = self._twins(out)
            results = flat_tensors(out)
        if is_mutable(func) and tensors:
            self.record(tensors[0]).const = None
            self.mutated.append(tensors[0])
        static = bool(tensors) and all(self.record(t).static for t in tensors)
        moving = [t for t in tensors if not self.record(t).static]
        from_input = (
            bool(moving) and all(self.record(t).from_input for t in moving) and not _counts(name)
        )
        self._apply(func, name, args, kwargs, out, tensors)
        for tensor in results:
            record = self.record(tensor)
            record.static |= static
            record.from_input = from_input
        self._evaluate(func, name, args, kwargs, results, consts)
        return out

    def _twins(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.device == _META else self.to_meta(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self._twins(v) for v in value)
        if isinstance(value, dict):
            return {k: self._twins(v) for k, v in value.items()}
        return value

    def _constant_inputs(self, func: Any, tensors: list[Tensor]) -> dict[int, Tensor] | None:
        """Return the real values of all arguments, or None if one is unknown or gets written."""
        if is_mutable(func) or not tensors:
            return None
        values: dict[int, Tensor] = {}
        for tensor in tensors:
            known = self.record(tensor).const
            if known is None:
                return None
            values[id(tensor)] = known
        return values

    def _evaluate(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        results: list[Tensor],
        consts: dict[int, Tensor] | None,
    ) -> None:
        """Compute the real value of a small result from the real values of all arguments."""
        small = len(results) == 1 and results[0].numel() <= _CONST_LIMIT
        if not small or (consts is None and name not in _FACTORIES):
            return
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": "cpu"}
        real = func(*replaced(args, consts or {}), **replaced(kwargs, consts or {}))
        record = self.record(results[0])
        record.const, record.static = real, True

    def _apply(
        self,
        func: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        out: Any,
        tensors: list[Tensor],
    ) -> None:
        idle = all(axis is None for t in tensors for axis in self.record(t).ids)
        if idle and not _counts(name) and name not in _MAKES_IDS:
            return
        op = Op(self, name, args, kwargs, out, self.where)
        found = self.rules.find(name)
        if found is None and is_pointwise(name):
            found = pointwise
        if found is None:
            self._no_rule(op, tensors)
            return
        first = self.record(tensors[0]) if tensors else None
        if first and is_mutable(func) and len(first.ids) != first.tensor.dim():
            op.freeze(first.ids, f"{op.where} changes the number of axes in place")
            first.ids = none_ids(first.tensor.dim())
            return
        if self.opaque and is_view(func) and name not in _UNMOVED:
            self._freeze_moved(op, tensors)
        self._run_rule(found, op)

    @staticmethod
    def _run_rule(rule: Rule, op: Op) -> None:
        try:
            rule(op)
        except FxpruneError:
            raise
        except Exception as error:
            raise InternalError(
                f"the rule for {op.name} failed: {type(error).__name__}: {error}",
                where=op.where,
                seen=", ".join(str(tuple(t.shape)) for t in op.tensors()),
                hint="this is a bug in the rule, please report it",
            ) from error

    def _freeze_moved(self, op: Op, tensors: list[Tensor]) -> None:
        """Sizes written inside a function that is not torch's own cannot be rewritten."""
        for tensor in tensors:
            op.freeze(op.ids(tensor), f"{op.where} is not one of torch's own and reshapes it")

    def _no_rule(self, op: Op, tensors: list[Tensor]) -> None:
        if self.unknown == "error":
            raise UnsupportedOpError(
                f"operator {op.name} has no rule",
                where=op.where,
                seen=", ".join(str(tuple(t.shape)) for t in tensors),
                hint='register a rule (see CONTRIBUTING.md), or leave unknown="freeze"',
            )
        for tensor in tensors:
            op.freeze(op.ids(tensor), f"{op.where} uses {op.name}, for which there is no rule")
        op.set_none()


def _counts(name: str) -> bool:
    """Return whether an operator's MACs count, so that it matters even without ids."""
    return name in (
        "aten::convolution",
        "aten::mm",
        "aten::bmm",
        "aten::addmm",
        "aten::baddbmm",
    )


def _same_ids(a: TensorRecord, b: TensorRecord) -> bool:
    return a.tensor.shape == b.tensor.shape and all(
        x is y or (x is not None and y is not None and np.array_equal(x, y))
        for x, y in zip(a.ids, b.ids, strict=True)
    )
