"""Convolutions.

``y[n, o] = sum over i of w[o, i] * x[n, g(o) * I/G + i]`` with G groups: output channel o and input
position i belong to weight axes 0 and 1 (swapped, and divided by G on the other side, when
transposed).

* dense (G = 1): the input's ids are the weight's input ids; the output's are the weight's output
  ids.
* depthwise (one input channel per group): nothing is summed over, output channel o follows its
  group's input.
* grouped: all groups must keep equally many positions. The same positions are kept in every group,
  so the ids of position i are tied across groups, on the input and on the output side. With one
  output channel per group there is nothing to choose inside a group: whole groups go, inputs and
  output together.

Multiply-accumulates are the kept entries of the weight times the output pixels (input pixels when
transposed).
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from fxprune.analysis.axes import AxisIds
from fxprune.analysis.ids import Ids
from fxprune.analysis.op import KERNEL, Op
from fxprune.rules._registry import rule

__all__ = ["convolution"]


@rule("aten::convolution")
def convolution(op: Op) -> None:
    """Dense, grouped, depthwise and transposed convolution in one to three dimensions."""
    x, weight, bias = op.args[:3]
    transposed, groups = op.arg(6, "transposed"), op.arg(8, "groups")
    for axis in op.ids(x)[2:]:
        why = "slides its kernel along this axis: a cut would give channels other neighbours"
        op.freeze(axis, f"{op.where} {why}")
    for axis in op.ids(weight)[2:]:
        op.freeze(axis, KERNEL)
    if transposed:
        made = _transposed(op, x, weight, groups)
    elif groups == 1:
        op.contract_pair(x, 1, weight, 1)
        made = op.ids(weight)[0]
    elif weight.shape[1] == 1:
        made = _depthwise(op, x, weight)
    else:
        made = _grouped(op, x, weight, groups)
    width = op.shape()[1]
    if bias is not None:
        made = op.unify(made, op.ids(bias)[0], width)
    pixels = x.shape[2:] if transposed else op.shape()[2:]
    factor = math.prod(pixels) * math.prod(weight.shape[2:])
    sides = [(t.shape[d], op.ids(t)[d]) for t, d in ((x, 0), (weight, 0), (weight, 1))]
    fixed = math.prod(n for n, ids in sides if ids is None)
    op.macs(factor * fixed, *(ids for _, ids in sides))
    op.set((op.ids(x)[0], made, *(None,) * (len(op.shape()) - 2)))


def _transposed(op: Op, x: Tensor, weight: Tensor, groups: int) -> AxisIds:
    """Weight is (in, out / groups, ...): its axis 0 runs over the input channels."""
    if groups == 1:
        op.contract_pair(x, 1, weight, 0)
        return op.ids(weight)[1]
    out_ids, width = op.ids(weight)[1], x.shape[1]
    tied = op.unify(op.ids(x)[1], op.ids(weight)[0], width, _fixed(op))
    if width == groups:
        return _per_group(op, tied, out_ids, weight.shape[1])
    op.space.mark_input(op.ids(weight)[0])
    _tie_across_groups(op, tied, groups)
    op.contract(x, [1])
    return None if out_ids is None else np.tile(out_ids, groups)


def _per_group(op: Op, per_group: AxisIds, within: AxisIds, multiplier: int) -> AxisIds:
    """Whole groups go: every position inside one follows it."""
    op.freeze(
        within, f"{op.where} is depthwise: whole groups are pruned, not positions inside them"
    )
    return None if per_group is None else np.repeat(per_group, multiplier)


def _depthwise(op: Op, x: Tensor, weight: Tensor) -> AxisIds:
    groups, width = x.shape[1], weight.shape[0]
    x_ids = op.ids(x)[1]
    spread = None if x_ids is None else np.repeat(x_ids, width // groups)
    return op.unify(spread, op.ids(weight)[0], width, _fixed(op))


def _grouped(op: Op, x: Tensor, weight: Tensor, groups: int) -> AxisIds:
    inside, out_ids = op.ids(weight)[1], op.ids(weight)[0]
    x_ids = op.ids(x)[1]
    if weight.shape[0] == groups:
        op.freeze(
            inside,
            f"{op.where} has one output per group: whole groups are pruned, not positions "
            f"inside them",
        )
        op.contract(x, [1])
        spread = None if out_ids is None else np.repeat(out_ids, x.shape[1] // groups)
        op.unify(x_ids, spread, x.shape[1], _fixed(op))
        return out_ids
    op.space.mark_input(inside)
    spread = None if inside is None else np.tile(inside, groups)
    op.unify(x_ids, spread, x.shape[1], _fixed(op))
    op.contract(x, [1])
    _tie_across_groups(op, out_ids, groups)
    return out_ids


def _tie_across_groups(op: Op, ids: AxisIds, groups: int) -> None:
    if ids is not None:
        rows: Ids = ids.reshape(groups, -1)
        for row in rows[1:]:
            op.space.unify(rows[0], row, op.where, _fixed(op))


def _fixed(op: Op) -> str:
    return f"{op.where} ties it to channels of fixed size"
