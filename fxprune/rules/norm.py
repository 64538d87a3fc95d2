"""Normalisation.

* BatchNorm works on each channel alone, in training and in evaluation: its parameters and
  statistics follow the channel. Other axes than the channels it takes statistics over.
* LayerNorm and RMSNorm take statistics over the normalised axes. Over the kept positions only,
  ``mean = sum(g x) / sum(g)``, the same number comes out before and after pruning: the graph gets a
  gated norm there (`fxprune.statistics`), and the axis stays prunable.
* GroupNorm is a LayerNorm of each group. The channels are split like any other axis into groups and
  positions: what is pruned are whole groups, and the same positions in every group. (InstanceNorm
  arrives here as a BatchNorm of a reshaped tensor.)
"""

from __future__ import annotations

from torch import Tensor

from fxprune.analysis.axes import none_ids, reshape_ids
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
    channel = ids[1]
    for tensor in op.tensors()[1:]:
        if tensor.dim() == 1:
            channel = op.unify(channel, op.ids(tensor)[0], x.shape[1])
    others = [d for d in range(x.dim()) if d != 1]
    op.statistic(x, others, f"{op.where} takes statistics over it when it trains")
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
    op.statistic(x, dims, f"{op.where} normalises over it")
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


@rule("aten::native_group_norm")
def group_norm(op: Op) -> None:
    """Normalisation of each group of channels, over the channels of the group and all pixels."""
    x, weight, bias, _, channels, _, groups = op.args[:7]
    ids = list(op.ids(x))
    where = op.where
    split = reshape_ids(op.space, (ids[1],), (channels,), (groups, channels // groups), where)
    dims = [*([] if split[1] is None else [1]), *range(2, x.dim())]
    op.statistic(x, dims, f"{op.where} takes statistics over it, in groups of channels")
    for tensor in (weight, bias):
        if isinstance(tensor, Tensor):
            ids[1] = op.unify(ids[1], op.ids(tensor)[0], channels)
    op.set_none()
    op.set(tuple(ids), op.out[0])
