"""Normalisation.

* BatchNorm works on each channel alone, in training and in evaluation: its parameters and
  statistics follow the channel.
* LayerNorm takes statistics over the normalised axes. Over the kept positions only, ``mean = sum(g
  x) / sum(g)``, the same number comes out before and after pruning: the graph gets a gated norm
  there, and the axis stays prunable.
* GroupNorm mixes fixed groups of channels: frozen. (InstanceNorm arrives here as a BatchNorm of a
  reshaped tensor.)
"""

from __future__ import annotations

from torch import Tensor

from fxprune.analysis.axes import none_ids
from fxprune.analysis.op import Op, flat_tensors
from fxprune.rules._registry import rule

__all__ = ["batch_norm", "group_norm", "layer_norm", "weight_norm"]


@rule(
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_no_training",
    "aten::_native_batch_norm_legit_functional",
    "aten::_batch_norm_with_update",
    "aten::_batch_norm_no_update",
    "aten::cudnn_batch_norm",
    "aten::batch_norm",
)
def batch_norm(op: Op) -> None:
    """Per-channel normalisation over axis 1."""
    x = op.args[0]
    ids = op.ids(x)
    op.freeze((ids[0], *ids[2:]), f"{op.where} takes statistics over it when it trains")
    channel = ids[1]
    for tensor in op.tensors()[1:]:
        if tensor.dim() == 1:
            channel = op.unify(channel, op.ids(tensor)[0], x.shape[1])
    results = flat_tensors(op.out)
    op.set((ids[0], channel, *ids[2:]), results[0])
    for other in results[1:]:
        op.set((channel,) if other.shape == (x.shape[1],) else none_ids(other.dim()), other)


@rule("aten::native_layer_norm")
def layer_norm(op: Op) -> None:
    """Normalisation over the trailing axes."""
    x, shape = op.args[:2]
    dims = tuple(range(x.dim() - len(shape), x.dim()))
    ids = list(op.ids(x))
    op.statistic(x, dims)
    for tensor in (op.arg(2, "weight"), op.arg(3, "bias")):
        if isinstance(tensor, Tensor):
            for own, d in enumerate(dims):
                if x.shape[d] != 1:
                    ids[d] = op.unify(ids[d], op.ids(tensor)[own], x.shape[d])
    op.set_none()
    op.set(tuple(ids), op.out[0])


@rule("aten::_weight_norm_interface")
def weight_norm(op: Op) -> None:
    """``w = g v / ||v||``, the norm over all axes but one: that one stays prunable."""
    v, g, dim = op.args[0], op.args[1], op.arg(2, "dim", 0)
    ids = list(op.ids(v))
    for d in range(v.dim()):
        if d != dim:
            op.freeze(ids[d], f"{op.where} divides by the weight's norm over it")
            ids[d] = None
    ids[dim] = op.unify(ids[dim], op.ids(g)[dim], v.shape[dim])
    op.set(tuple(ids), op.out[0])


@rule("aten::native_group_norm", "aten::group_norm")
def group_norm(op: Op) -> None:
    """Statistics over a fixed number of channel groups: frozen."""
    reason = f"{op.where} takes statistics over fixed groups of channels"
    for tensor in op.tensors():
        op.freeze(op.ids(tensor), reason)
    op.set_none()
