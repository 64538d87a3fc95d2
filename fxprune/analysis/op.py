"""What an operator rule sees and may say: one executed operator and the ids of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fxprune.analysis.axes import AxisIds, TensorIds, none_ids
from fxprune.analysis.ids import Ids, IdSpace, Owner

__all__ = ["KERNEL", "Op", "TensorRecord", "flat_tensors"]

KERNEL = "the axis is a kernel's extent, not channels"
"""Reason of frozen axes that are no channels at all; the user is not told of these."""


@dataclass(slots=True)
class TensorRecord:
    """What is known of one tensor during analysis.

    Attributes
    ----------
    tensor : Tensor
        The meta tensor itself; holding it keeps its ``id()`` from being used again.
    ids : tuple of (int array or None), one per axis
        Channel ids.
    root : Tensor
        The graph-level value of which this tensor is only a re-arrangement (views, casts).
    const : Tensor, optional
        Its real value, when it is known without running on data.
    static : bool
        True when it depends on parameters and buffers only.
    from_input : bool
        True when it is an input of the model, or one only moved and rescaled.
    """

    tensor: Tensor
    ids: TensorIds
    root: Tensor
    const: Tensor | None = None
    static: bool = False
    from_input: bool = False


def flat_tensors(value: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples, dicts and dataclasses, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [t for item in value for t in flat_tensors(item)]
    if isinstance(value, dict):
        return [t for item in value.values() for t in flat_tensors(item)]
    if is_dataclass(value) and not isinstance(value, type):
        return [t for item in fields(value) for t in flat_tensors(getattr(value, item.name))]
    return []


class Recorder(Protocol):
    """What `Op` needs of the analysis that runs it."""

    space: IdSpace
    border: str

    def record(self, tensor: Tensor) -> TensorRecord: ...
    def add_contraction(self, record: TensorRecord, dim: int) -> None: ...
    def add_statistic(self, record: TensorRecord, dims: tuple[int, ...]) -> bool: ...
    def add_macs(self, factor: int, runs: tuple[Ids, ...]) -> None: ...
    def add_lookup(self, record: TensorRecord, dim: int, table: Ids) -> bool: ...


class Op:
    """One executed operator, as a rule sees it.

    Attributes
    ----------
    name : str
        Operator name such as ``aten::convolution``.
    args, kwargs
        Its arguments; tensors are meta tensors.
    out
        Its result.
    where : str
        Graph node, module path and source line, for reasons and errors.
    """

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        out: Any,
        where: str,
    ) -> None:
        self._recorder = recorder
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.out = out
        self.where = where
        self.space = recorder.space

    # -- reading
    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, default)

    def ids(self, tensor: Tensor) -> TensorIds:
        """Return the ids of `tensor`, one entry per axis."""
        return self._recorder.record(tensor).ids

    def const(self, tensor: Tensor) -> Tensor | None:
        """Return the real value of `tensor` if it is known."""
        return self._recorder.record(tensor).const

    def static(self, tensor: Tensor) -> bool:
        """Return whether `tensor` depends on parameters and buffers only."""
        return self._recorder.record(tensor).static

    def tensors(self) -> list[Tensor]:
        """Return all tensor arguments."""
        return flat_tensors([self.args, self.kwargs])

    # -- relations
    def unify(self, a: AxisIds, b: AxisIds, width: int, why: str = "") -> AxisIds:
        """Tie two axes of equal width position by position and return the ids of the result."""
        why = why or f"{self.where} combines it with something of fixed size"
        if a is None or b is None:
            self.freeze(a, why)
            self.freeze(b, why)
            return None
        if len(a) != width or len(b) != width:
            self.freeze(a, why)
            self.freeze(b, why)
            return None
        self.space.unify(a, b, self.where, why)
        return a

    def freeze(self, ids: AxisIds | TensorIds, reason: str) -> None:
        """Freeze the ids of one axis, or of all axes of a tensor."""
        if isinstance(ids, tuple):
            for axis in ids:
                self.space.freeze(axis, reason)
        else:
            self.space.freeze(ids, reason)

    def fresh(self, width: int) -> Ids:
        """Return ids of positions that this operator creates and that may be dropped freely."""
        return self.space.fresh(width, Owner(self.where, 0, "node"))

    def contract(self, tensor: Tensor, dims: Sequence[int]) -> None:
        """Say that the operator sums over these axes of `tensor`: it must be gated before."""
        record = self._recorder.record(tensor)
        for dim in dims:
            if record.ids[dim] is not None:
                self._recorder.add_contraction(record, dim)

    def contract_pair(self, a: Tensor, a_dim: int, b: Tensor, b_dim: int) -> None:
        """Say that the operator sums over one axis of `a` against one of `b`.

        The two are tied, and one of them is gated.
        """
        ia, ib = self.ids(a)[a_dim], self.ids(b)[b_dim]
        reason = f"{self.where} sums over it together with something of fixed size"
        for ids, tensor, other in ((ia, a, b), (ib, b, a)):
            if self.static(tensor) and not self.static(other):
                self.space.mark_input(ids)
        if self._recorder.record(a).from_input:
            reason = f"it reads {self._recorder.border}"
        self.unify(ia, ib, a.shape[a_dim], reason)
        gated, dim = (b, b_dim) if self.static(a) and not self.static(b) else (a, a_dim)
        self.contract(gated, [dim])

    def statistic(self, tensor: Tensor, dims: Sequence[int], reason: str) -> bool:
        """Say that the operator takes a statistic over these axes of `tensor`.

        Where the graph node has a gated twin (`fxprune.statistics`), it takes the gates as a mask;
        elsewhere the axes are frozen.

        Parameters
        ----------
        tensor : Tensor
        dims : sequence of int
            Not negative.
        reason : str
            Why the axes are frozen, if they are.

        Returns
        -------
        bool
            Whether the axes stay prunable.
        """
        record = self._recorder.record(tensor)
        carrying = tuple(d for d in dims if record.ids[d] is not None)
        if not carrying or self._recorder.add_statistic(record, carrying):
            return True
        for d in carrying:
            self.freeze(record.ids[d], reason)
        return False

    def macs(self, factor: int, *runs: AxisIds) -> None:
        """Count multiply-accumulates: `factor` times the product of the runs' kept counts."""
        self._recorder.add_macs(factor, tuple(r for r in runs if r is not None))

    def lookup(self, tensor: Tensor, dim: int, table: Ids) -> bool:
        """Say that the operator takes positions of one axis of `tensor` by number.

        Parameters
        ----------
        tensor : Tensor
        dim : int
        table : int array
            The numbers of the positions taken, in order.

        Returns
        -------
        bool
            Whether these numbers can be rewritten when the axis is pruned; if not, freeze it.
        """
        return self._recorder.add_lookup(self._recorder.record(tensor), dim, table)

    # -- results
    def set(self, ids: TensorIds, out: Tensor | None = None, moved: Tensor | None = None) -> None:
        """Set the ids of the result (or of one of several results).

        Parameters
        ----------
        ids : tuple, one entry per axis
        out : Tensor, optional
            Which result; the only one by default.
        moved : Tensor, optional
            The argument of which the result is only a re-arrangement, if it is.
        """
        target = self.out if out is None else out
        record = self._recorder.record(target)
        clean: list[AxisIds] = []
        for width, axis in zip(target.shape, ids, strict=True):
            if width == 1:
                self.freeze(axis, f"{self.where} takes it out as a single channel")
            clean.append(None if axis is None or width == 1 or not axis.any() else axis)
        record.ids = tuple(clean)
        record.root = target if moved is None else self._recorder.record(moved).root

    def set_none(self) -> None:
        """Say that no result carries ids."""
        for tensor in flat_tensors(self.out):
            self._recorder.record(tensor).ids = none_ids(tensor.dim())

    def shape(self) -> torch.Size:
        """Return the shape of the (single) result."""
        shape: torch.Size = self.out.shape
        return shape
