"""Recurrent layers: LSTM, GRU, RNN and their cells, each analysed as one operator.

With k blocks of gates (4 for an LSTM, 3 for a GRU, 1 for a plain RNN) a step computes::

    a_t = W_ih x_t + b_ih  (k blocks of h rows),    r_t = W_hh h_(t-1) + b_hh  (the same)
    h_t[j], c_t[j] = function of a_t[j], r_t[j] in every block, and of h_(t-1)[j], c_(t-1)[j]

So hidden unit j is row j of every block of W_ih, W_hh and the biases, column j of W_hh, position j
of the states, and a column of W_ih of the next layer. A unit reads other units through W_hh and
through the next layer's W_ih only. These sums happen inside the operator, where no gate can stand
on the state; the gate stands on the columns of the weight instead: ``(W diag(g)) h = W (g h)``.
With gate 0 the unit still runs, and nothing reads it: exact, whatever its state does.

An LSTM with projections has ``h = W_hr (o tanh(c))``: c and the blocks belong to the hidden units;
h, W_hh's columns and the output to the projected ones. torch tells such an LSTM by the width of h
being another than that of c, which must not come out equal by chance: the hidden units are frozen.

All layers and directions of one module share a size, so unit j of each is one unit. The operators
are composite: torch would take them apart into a loop over time (`SHAPES` keeps it from doing so).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fxprune.analysis.axes import AxisIds, concat_ids
from fxprune.analysis.op import Op
from fxprune.rules._registry import rule

__all__ = ["SHAPES", "cell", "sequence"]

_BLOCKS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_SEQUENCES = tuple(f"aten::{kind}" for kind in _BLOCKS)
_CELLS = tuple(f"aten::{kind}_cell" for kind in _BLOCKS)


@dataclass(frozen=True, slots=True)
class _Weights:
    """The parameters of one layer in one direction (or of a cell)."""

    w_ih: Tensor
    w_hh: Tensor
    biases: tuple[Tensor, ...]
    w_hr: Tensor | None = None


def _states(hx: Any) -> tuple[Tensor, ...]:
    """Return the initial states: h, and c for an LSTM."""
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _packed(args: Sequence[Any]) -> bool:
    """Return whether the arguments are those of a packed sequence: (data, batch sizes, hx, ..)."""
    return isinstance(args[3], (list, tuple))


def _sequence_shapes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[int, ...]]:
    x = args[0]
    hx, rest = (args[2], args[4:]) if _packed(args) else (args[1], args[3:])
    states = _states(hx)
    directions = 2 if rest[4] else 1
    output = (*x.shape[:-1], states[0].shape[-1] * directions)
    return [output, *(tuple(s.shape) for s in states)]


def _cell_shapes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(s.shape) for s in _states(args[1])]


Shapes = Callable[[Sequence[Any], Mapping[str, Any]], list[tuple[int, ...]] | None]

SHAPES: Mapping[str, Shapes] = {
    **dict.fromkeys(_SEQUENCES, _sequence_shapes),
    **dict.fromkeys(_CELLS, _cell_shapes),
}
"""Operators that are analysed whole: from their arguments to the shapes of their results."""


@rule(*_SEQUENCES)
def sequence(op: Op) -> None:
    """Run over a sequence: (input, hx, params, has_biases, layers, dropout, train, both ways, ..).

    A packed sequence has its batch sizes before hx.
    """
    x, args = op.args[0], op.args
    hx, params, rest = (
        (args[2], args[3], args[4:]) if _packed(args) else (args[1], args[2], args[3:])
    )
    biased, layers, directions = rest[0], rest[1], 2 if rest[4] else 1
    blocks = _BLOCKS[op.name.removeprefix("aten::")]
    states = _states(hx)
    projected = len(states) == 2 and states[0].shape[-1] != states[1].shape[-1]
    weights = _by_layer(params, biased, projected)
    steps = x.shape[:-1].numel()
    _only_features(op, x, states)

    hidden, made = None, None
    for number, weight in enumerate(weights):
        own, out = _layer(op, weight, blocks, steps)
        hidden = own if number == 0 else _tie(op, hidden, own)
        made = out if number == 0 else _tie(op, made, out)
    for number, weight in enumerate(weights[: layers * directions]):
        if number < directions:
            op.contract_pair(x, x.dim() - 1, weight.w_ih, 1)
        else:
            width = weight.w_ih.shape[1] // directions
            _read_inside(op, weight.w_ih, concat_ids([(made, width)] * directions))
    hidden, made = _enter(op, states, hidden, made)

    width = states[0].shape[-1]
    output = concat_ids([(made, width)] * directions)
    op.set((*(None,) * (x.dim() - 1), output), op.out[0])
    for ids, state in zip((made, hidden), op.out[1:], strict=False):
        op.set((None, None, ids), state)


@rule(*_CELLS)
def cell(op: Op) -> None:
    """Run one step: ``(input, hx, w_ih, w_hh, b_ih, b_hh)``."""
    x, states = op.args[0], _states(op.args[1])
    biases = tuple(b for b in (op.arg(4, "b_ih"), op.arg(5, "b_hh")) if b is not None)
    weight = _Weights(op.args[2], op.args[3], biases)
    blocks = _BLOCKS[op.name.removeprefix("aten::").removesuffix("_cell")]
    _only_features(op, x, states)
    hidden, made = _layer(op, weight, blocks, x.shape[:-1].numel())
    op.contract_pair(x, x.dim() - 1, weight.w_ih, 1)
    hidden, made = _enter(op, states, hidden, made)
    results = (op.out,) if isinstance(op.out, Tensor) else op.out
    for ids, state in zip((made, hidden), results, strict=False):
        op.set((*(None,) * (state.dim() - 1), ids), state)


def _by_layer(params: Sequence[Tensor], biased: bool, projected: bool) -> list[_Weights]:
    """Take the flat list of parameters apart, one entry per layer and direction."""
    count = 2 + 2 * biased + projected
    runs = [params[i : i + count] for i in range(0, len(params), count)]
    return [
        _Weights(run[0], run[1], tuple(run[2 : 2 + 2 * biased]), run[-1] if projected else None)
        for run in runs
    ]


def _only_features(op: Op, x: Tensor, states: tuple[Tensor, ...]) -> None:
    """Freeze every axis but the last: time and batch."""
    for tensor in (x, *states):
        op.freeze(op.ids(tensor)[:-1], f"{op.where} runs over it as over time or samples")


def _layer(op: Op, weight: _Weights, blocks: int, steps: int) -> tuple[AxisIds, AxisIds]:
    """Tie the axes of one layer; return the ids of its hidden units and of what it puts out."""
    rows = op.ids(weight.w_ih)[0]
    for other in (weight.w_hh, *weight.biases):
        rows = op.unify(rows, op.ids(other)[0], other.shape[0])
    width = weight.w_hh.shape[0] // blocks
    hidden = None if rows is None else rows[:width]
    for block in range(1, blocks if hidden is not None else 0):
        hidden = op.unify(hidden, rows[block * width : (block + 1) * width], width)  # type: ignore[index]
    made = hidden
    if weight.w_hr is not None:
        made = op.ids(weight.w_hr)[0]
        op.freeze(hidden, f"{op.where} has projections, known by being fewer than the hidden units")
        _read_inside(op, weight.w_hr, hidden)
        _count(op, steps, weight.w_hr)
    _read_inside(op, weight.w_hh, made)
    _count(op, steps, weight.w_ih)
    _count(op, steps, weight.w_hh)
    return hidden, made


def _read_inside(op: Op, weight: Tensor, ids: AxisIds) -> None:
    """Say that the columns of `weight` are summed against units inside the operator."""
    columns = op.ids(weight)[1]
    op.space.mark_input(columns)
    op.unify(ids, columns, weight.shape[1], f"{op.where} sums over it inside")
    op.contract(weight, [1])


def _tie(op: Op, a: AxisIds, b: AxisIds) -> AxisIds:
    """Tie the units of two layers or directions: the module has one size for all of them."""
    return op.unify(a, b, 0 if a is None else len(a))


def _enter(
    op: Op, states: tuple[Tensor, ...], hidden: AxisIds, made: AxisIds
) -> tuple[AxisIds, AxisIds]:
    """Tie the initial states to the units they belong to."""
    why = f"{op.where} starts from a state of fixed size"
    ends = []
    for ids, state in zip((made, hidden), states, strict=False):
        ends.append(op.unify(ids, op.ids(state)[-1], state.shape[-1], why))
    return (ends[-1] if len(states) == 2 else hidden), ends[0]


def _count(op: Op, steps: int, weight: Tensor) -> None:
    axes = [(n, ids) for n, ids in zip(weight.shape, op.ids(weight), strict=True)]
    fixed = int(np.prod([n for n, ids in axes if ids is None], dtype=np.int64))
    op.macs(steps * fixed, *(ids for _, ids in axes))
