"""Cut removed positions out of parameters and buffers, and bring the modules' own sizes up to date.

A parameter ``W`` with ids on axes ``d1, d2, ..`` becomes ``W[kept(d1)][:, kept(d2)]..``: the
sub-tensor of the positions whose units are all kept. A convolution then reads its channel counts
off its weight; its groups stay as many as they were, except for a depthwise one, where whole groups
went. A GroupNorm keeps the groups of which a channel is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fxprune._taking import kept_positions, take
from fxprune.analysis.axes import TensorIds
from fxprune.analysis.plan import Keep, Plan
from fxprune.errors import PreconditionError
from fxprune.passes.base import Edit, Pass, PassResult, called_module

__all__ = ["SliceChannels"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class SliceChannels(Pass):
    """Slice parameters and buffers to what a keep-vector keeps.

    Parameters
    ----------
    plan : Plan
    keep : bool array, shape (n_units,)
    mode : str
        Which of the plan's graphs this is.
    made : dict
        By ``id`` of a tensor: its sliced form. The passes over the graphs of several modes share
        one, so that both graphs read the same tensors; the tensors must outlive it.
    """

    name: ClassVar[str] = "slice_channels"

    plan: Plan
    keep: npt.NDArray[np.bool_]
    mode: str = "eval"
    made: dict[int, Tensor] = field(default_factory=dict)

    def requires(self, gm: GraphModule) -> None:
        """Check that the tensors have the shapes the plan was made for, or are sliced already.

        Raises
        ------
        PreconditionError
            If a tensor has another shape.
        """
        for name, tensor in (*gm.named_parameters(), *gm.named_buffers()):
            shape = self.plan.shapes.get(name)
            if shape is not None and tuple(tensor.shape) not in (shape, self._target(name, shape)):
                raise PreconditionError(
                    "The plan given to 'slice_channels' was made for other shapes.",
                    where=name,
                    seen=f"{tuple(tensor.shape)}, planned {shape}",
                    hint="analyse this very model",
                )

    def run(self, gm: GraphModule) -> PassResult:
        """Slice every tensor once (tied ones stay tied), then update the modules that own them."""
        edits: list[Edit] = []
        sliced: dict[int, Tensor] = {}
        # a tied tensor has several names here, and only one of them is in the plan
        for name, tensor in (
            *gm.named_parameters(remove_duplicate=False),
            *gm.named_buffers(remove_duplicate=False),
        ):
            if id(tensor) in sliced:
                continue
            small = self.made[id(tensor)] if id(tensor) in self.made else self._sliced(name, tensor)
            if small is not None:
                sliced[id(tensor)] = self.made[id(tensor)] = small
                before, after = str(tuple(tensor.shape)), str(tuple(small.shape))
                edits.append(Edit(self.name, name, before, after, "removed channels are cut out"))
        for module in gm.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # nothing in it is sliced, and its stores are no dicts
            stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for store in stores:
                store.update({k: sliced[id(t)] for k, t in store.items() if id(t) in sliced})
        for node in gm.graph.nodes:
            called = called_module(gm, node)
            if called is not None and node.all_input_nodes:
                edits += self._update(node.name, node.all_input_nodes[0].name, called)
        return PassResult(gm, changed=bool(edits), edits=tuple(edits))

    def _target(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(
            self.plan.width(self.plan.axes.get((name, d)), n, self.keep)
            for d, n in enumerate(shape)
        )

    def _sliced(self, name: str, tensor: Tensor) -> Tensor | None:
        """Return what is kept of a tensor, or None if it is not to be sliced (any more)."""
        shape = self.plan.shapes.get(name)
        if shape is None or tuple(tensor.shape) != shape or self._target(name, shape) == shape:
            return None
        small = take(tensor.detach(), kept_positions(self.plan, name, self.keep))
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(small, tensor.requires_grad)
        return small

    def _update(self, node: str, source: str, module: nn.Module) -> list[Edit]:
        for kind, update in _UPDATES:
            if isinstance(module, kind):
                before = repr(module)
                update(module, self._source(source))
                after = repr(module)
                if before != after:
                    return [Edit(self.name, node, before, after, "sizes follow the sliced tensors")]
                return []
        return []

    def _source(self, name: str) -> _Source:
        values = self.plan.graphs[self.mode].trace.values.get(name)
        return _Source(self.plan, self.keep, *(values[0] if values else ((), ())))


@dataclass(frozen=True, slots=True)
class _Source:
    """What a module reads: shape and ids, both empty when no axis carries ids."""

    plan: Plan
    keep: Keep
    shape: tuple[int, ...]
    ids: TensorIds

    @property
    def widths(self) -> tuple[int, ...]:
        """Kept widths of the axes."""
        pairs = zip(self.ids, self.shape, strict=True)
        return tuple(self.plan.width(i, n, self.keep) for i, n in pairs)

    def kept(self, dim: int) -> Keep | None:
        """Return which positions of an axis are kept, or None if nothing of it can be removed."""
        axis = self.ids[dim] if self.ids else None
        return None if axis is None else self.plan.kept(axis, self.keep)


def _conv(module: Any, source: _Source) -> None:
    first, second = module.weight.shape[:2]
    if module.transposed:
        if module.groups > 1 and module.groups == module.in_channels:
            module.groups = first
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        if module.groups > 1 and source.ids:
            module.groups = source.widths[-1 - len(module.kernel_size)] // second
        module.in_channels, module.out_channels = second * module.groups, first


def _linear(module: Any, source: _Source) -> None:
    module.out_features, module.in_features = module.weight.shape


def _batch_norm(module: Any, source: _Source) -> None:
    known = module.weight if module.weight is not None else module.running_mean
    module.num_features = (
        len(known)
        if known is not None
        else (source.widths[1] if source.ids else module.num_features)
    )


def _layer_norm(module: Any, source: _Source) -> None:
    if source.ids:
        module.normalized_shape = source.widths[-len(module.normalized_shape) :]


def _group_norm(module: Any, source: _Source) -> None:
    """Leave as many groups as have a channel that is kept."""
    kept = source.kept(1)
    if kept is not None and module.num_channels == len(kept):
        groups = kept.reshape(module.num_groups, -1)
        module.num_groups, module.num_channels = int(groups.any(axis=1).sum()), int(kept.sum())


def _embedding(module: Any, source: _Source) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _bilinear(module: Any, source: _Source) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _prelu(module: Any, source: _Source) -> None:
    module.num_parameters = len(module.weight)


def _recurrent(module: Any, source: _Source) -> None:
    """Read the sizes of an LSTM, GRU or RNN off its weights, and make it see the new weights."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, parameter)
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = module.weight_hh_l0.shape[0] // _BLOCKS.get(module.mode, 1)
    if module.proj_size:
        module.proj_size = len(module.weight_hr_l0)


def _recurrent_cell(module: Any, source: _Source) -> None:
    module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


_BLOCKS = {"LSTM": 4, "GRU": 3}

_UPDATES: tuple[tuple[type[nn.Module], Callable[[Any, _Source], None]], ...] = (
    (_ConvNd, _conv),
    (nn.Linear, _linear),
    (_NormBase, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.Bilinear, _bilinear),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
)
