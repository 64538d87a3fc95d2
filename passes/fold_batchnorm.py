"""Fold an eval-mode batch normalisation into the layer before it.

In eval mode a batch normalisation is affine per channel. With running mean m, running variance v,
affine pair (g, c) and a layer ``y = W x + b`` in front of it::

    BN(y) = g (y - m) / sqrt(v + eps) + c = W' x + b'
    s  = g / sqrt(v + eps)
    W' = s W          along the axis of W that makes the output channels
    b' = s (b - m) + c

The output axis is 0 for a convolution and a linear layer. A transposed convolution of G groups
keeps its weight as (C_in, C_out / G, ...), and the rows of group i make the channels i C_out / G
and up: there s is laid out as (G, 1, C_out / G). The products are formed in float64 and rounded
once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from operator import attrgetter
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxprune.errors import PostconditionError, PreconditionError
from fxprune.passes.base import Edit, Pass, PassResult, Skip, called_module

__all__ = ["FoldBatchNorm"]

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | _Transposed | nn.Linear

# Exact types: a subclass may compute something else.
_LAYERS_BEFORE: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.BatchNorm1d: (nn.Conv1d, nn.ConvTranspose1d, nn.Linear),
    nn.BatchNorm2d: (nn.Conv2d, nn.ConvTranspose2d),
    nn.BatchNorm3d: (nn.Conv3d, nn.ConvTranspose3d),
}


# What can be in the way of a fold, by exact type or as a subclass.
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class _Pair(NamedTuple):
    """A layer and the batch normalisation to fold into it."""

    layer_node: Node
    layer: _Layer
    norm_node: Node
    norm: _BatchNorm
    mean: Tensor
    var: Tensor


class _Uses(NamedTuple):
    """How often each module is called, and in how many places each tensor (by identity) is used."""

    calls: Counter[nn.Module]
    owners: Counter[int]


@final
@dataclass(frozen=True, slots=True)
class FoldBatchNorm(Pass):
    """Fold BatchNorm1d, 2d and 3d into the convolution or linear layer before it.

    A pair is folded when the normalisation is the only reader of the layer, neither is called
    anywhere else, and their tensors are shared with nothing; otherwise a `Skip` tells why not. The
    folded layer gets a bias if it had none.

    Notes
    -----
    Only for modules in eval mode: in training mode a batch normalisation depends on the batch. A
    linear layer in front of BatchNorm1d is folded only when the node's metadata (``val`` or
    ``tensor_meta``, as written by ``torch.fx.passes.shape_prop.ShapeProp``) says that its output
    has two dimensions: with three, BatchNorm1d normalises axis 1, which is not the axis a linear
    layer makes.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from fxprune.passes import FoldBatchNorm
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> result = FoldBatchNorm()(torch.fx.symbolic_trace(net))
    >>> [node.target for node in result.module.graph.nodes if node.op == "call_module"]
    ['0', '2']
    """

    name: ClassVar[str] = "fold_batchnorm"

    def requires(self, gm: GraphModule) -> None:
        """Refuse a module in training mode.

        Parameters
        ----------
        gm : GraphModule
            The module about to be rewritten.

        Raises
        ------
        PreconditionError
            If the module itself, or a batch normalisation it calls, is in training mode.
        """
        training = ["the module itself"] if gm.training else []
        for node in gm.graph.nodes:
            module = called_module(gm, node)
            if isinstance(module, _NORMS) and module.training:
                training.append(str(node.target))
        if training:
            raise PreconditionError(
                f"The pass {self.name!r} works in eval mode only.",
                where=", ".join(training),
                seen="training=True",
                hint="call .eval() on the module first; training after folding is not equivalent",
            )

    def run(self, gm: GraphModule) -> PassResult:
        """Fold every pair that allows it.

        Parameters
        ----------
        gm : GraphModule
            The module to rewrite in place.

        Returns
        -------
        PassResult
            One edit per folded pair, one skip per batch normalisation that stays.
        """
        edits: list[Edit] = []
        while True:
            pairs, skipped = _matches(gm)
            if not pairs:
                return PassResult(gm, bool(edits), tuple(edits), tuple(skipped))
            for pair in pairs:
                edits.append(_edit(pair))
                _fold(gm, pair)

    def ensures(self, gm: GraphModule) -> None:
        """Check that no pair is left that could be folded.

        Parameters
        ----------
        gm : GraphModule
            The rewritten module.

        Raises
        ------
        PostconditionError
            If a pair is left.
        """
        pairs, _ = _matches(gm)
        if pairs:
            raise PostconditionError(
                f"The pass {self.name!r} left a batch normalisation that could be folded.",
                where=", ".join(str(pair.norm_node.target) for pair in pairs),
                hint="this is a bug in the pass",
            )


def _matches(gm: GraphModule) -> tuple[list[_Pair], list[Skip]]:
    """Sort the batch normalisations into those that can be folded now and those that cannot."""
    uses = _uses(gm)
    pairs: list[_Pair] = []
    skipped: list[Skip] = []
    for node in gm.graph.nodes:
        if isinstance(called_module(gm, node), _NORMS):
            match = _match(gm, node, uses)
            if isinstance(match, str):
                skipped.append(Skip(FoldBatchNorm.name, node.name, match))
            else:
                pairs.append(match)
    return pairs, skipped


def _uses(gm: GraphModule) -> _Uses:
    uses = _Uses(Counter(), Counter())
    for node in gm.graph.nodes:
        called = called_module(gm, node)
        if called is not None:
            uses.calls.update(called.modules())
        elif node.op == "get_attr":
            uses.owners[id(attrgetter(str(node.target))(gm))] += 1
    for module in gm.modules():
        own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        uses.owners.update(id(tensor) for tensor in own)
    return uses


def _match(gm: GraphModule, node: Node, uses: _Uses) -> _Pair | str:
    """Return the pair to fold at a batch normalisation, or the reason why there is none."""
    norm = called_module(gm, node)
    if not isinstance(norm, _BatchNorm) or type(norm) not in _LAYERS_BEFORE:
        kind = type(norm).__name__
        return f"{kind} is not exactly BatchNorm1d, 2d or 3d and may compute something else"
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return "it keeps no running statistics, so it depends on the batch in eval mode too"
    source = node.all_input_nodes[0]
    layer = called_module(gm, source)
    if not isinstance(layer, _Layer) or type(layer) not in _LAYERS_BEFORE[type(norm)]:
        wanted = ", ".join(kind.__name__ for kind in _LAYERS_BEFORE[type(norm)])
        found = source.name if layer is None else f"{source.name} ({type(layer).__name__})"
        return f"its input is {found}, which is not exactly one of {wanted}"
    if len(source.users) > 1:
        others = ", ".join(user.name for user in source.users if user is not node)
        return f"{source.name} is also read by {others}"
    pair = _Pair(source, layer, node, norm, mean, var)
    return _clash(pair, uses) or pair


def _clash(pair: _Pair, uses: _Uses) -> str | None:
    """Say what else depends on the two modules as they are, or why their channels differ."""
    source, layer, norm = pair.layer_node, pair.layer, pair.norm
    for module, target in ((layer, source.target), (norm, pair.norm_node.target)):
        if uses.calls[module] > 1:
            return f"{target} is called {uses.calls[module]} times"
        if any(uses.owners[id(t)] > 1 for t in (*module.parameters(), *module.buffers())):
            return f"{target} shares a parameter or buffer with something else"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{target} has forward hooks, which may change what it computes"
    if isinstance(layer, nn.Linear):
        made, rank = layer.out_features, _rank(source)
        if rank != 2:
            seen = "is not known (run ShapeProp first)" if rank is None else f"is {rank}"
            return f"the number of dimensions that {source.name} returns must be 2 and {seen}"
    else:
        made = layer.out_channels
    if made != norm.num_features:
        return f"it normalises {norm.num_features} channels, but {source.name} makes {made}"
    return None


def _rank(node: Node) -> int | None:
    value = node.meta.get("val", node.meta.get("tensor_meta"))
    shape = getattr(value, "shape", None)
    return None if shape is None else len(shape)


def _edit(pair: _Pair) -> Edit:
    layer = f"{type(pair.layer).__name__} {pair.layer_node.target}"
    norm = f"{type(pair.norm).__name__} {pair.norm_node.target}"
    why = "in eval mode a batch normalisation is affine per channel, and the layer can carry that"
    return Edit(FoldBatchNorm.name, pair.norm_node.name, f"{layer}, {norm}", layer, why)


@torch.no_grad()
def _fold(gm: GraphModule, pair: _Pair) -> None:
    layer, norm = pair.layer, pair.norm
    scale = (pair.var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -pair.mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()

    weight = layer.weight
    if isinstance(layer, _Transposed):
        by_group = weight.double().view(layer.groups, -1, *weight.shape[1:])
        factor = scale.view(layer.groups, 1, -1, *[1] * (weight.dim() - 2))
        weight.copy_((by_group * factor).flatten(0, 1))
    else:
        weight.copy_(weight.double() * scale.view(-1, *[1] * (weight.dim() - 1)))
    if layer.bias is None:
        layer.bias = nn.Parameter(shift.to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        layer.bias.copy_(layer.bias.double() * scale + shift)

    pair.norm_node.replace_all_uses_with(pair.layer_node)
    gm.graph.erase_node(pair.norm_node)
    gm.delete_submodule(str(pair.norm_node.target))
