"""Write what a traced subclass of torch's BatchNorm does as a call of torch's own module.

A subclass with a forward of its own (a norm with its activation, say) is traced through and leaves
``F.batch_norm(x, .., training=..)`` in the graph of each mode. Where these calls read exactly the
module's own tensors and do in both modes what torch's module would, they are that module: the modes
then have one graph, and whatever knows the module (folding, export, resizing) knows it here.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxprune._graphs import fetch

__all__ = ["use_plain_modules"]

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_TENSORS = ("running_mean", "running_var", "weight", "bias")
_SIGNATURE = inspect.signature(F.batch_norm)

_Call = tuple[fx.Node, bool]  # a functional batch norm, and whether it is in the training graph


def use_plain_modules(model: nn.Module, graphs: Mapping[str, fx.Graph]) -> None:
    """Replace traced batch norms by calls of torch's own modules, in the model and its graphs.

    Parameters
    ----------
    model : nn.Module
        Changed in place. A module that is replaced keeps its path, tensors and children.
    graphs : mapping
        ``"eval"`` and ``"train"``; changed in place.
    """
    calls, held_by = _calls_by_tensor(model, graphs), _holders(model)
    for path, module in list(model.named_modules()):
        kind = next((k for k in _PLAIN if isinstance(module, k)), None)
        if kind is None or type(module) is kind or not path:
            continue
        own = (t for t in (*module.parameters(False), *module.buffers(False)))
        found = {call: None for t in own for call in calls.get(id(t), ())}
        if found and all(_is_plain(model, module, *call) for call in found):
            plain = _plain(kind, module)
            for held, name in held_by[module]:
                held[name] = plain
            for node, _ in found:
                _call_module(node, path)


def _calls_by_tensor(
    model: nn.Module, graphs: Mapping[str, fx.Graph]
) -> dict[int, dict[_Call, None]]:
    """Return the functional batch norms by the ``id`` of the tensors that they read."""
    calls: dict[int, dict[_Call, None]] = {}
    for mode, graph in graphs.items():
        for node in graph.nodes:
            if node.op == "call_function" and node.target is F.batch_norm:
                for source in node.all_input_nodes:
                    if source.op == "get_attr":
                        tensor = fetch(model, str(source.target))
                        calls.setdefault(id(tensor), {})[node, mode == "train"] = None
    return calls


def _holders(model: nn.Module) -> dict[nn.Module | None, list[tuple[dict[str, Any], str]]]:
    """Return where each module is held: the children of another, which stay the same dict."""
    found: dict[nn.Module | None, list[tuple[dict[str, Any], str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            found.setdefault(child, []).append((parent._modules, name))
    return found


def _is_plain(model: nn.Module, module: _BatchNorm, node: fx.Node, training: bool) -> bool:
    """Return whether a functional batch norm does what the module's plain twin would."""
    given = _arguments(node)
    tracked = module.running_mean is not None
    return (
        all(_value(model, given[name]) is getattr(module, name) for name in _TENSORS)
        and given["training"] is (training or not tracked)
        and given["eps"] == module.eps
        and module.momentum is not None
        and (not tracked or given["momentum"] == module.momentum)
    )


def _arguments(node: fx.Node) -> dict[str, Any]:
    bound = _SIGNATURE.bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bound.arguments


def _value(model: nn.Module, argument: Any) -> Any:
    if isinstance(argument, fx.Node) and argument.op == "get_attr":
        return fetch(model, str(argument.target))
    return argument


def _plain(kind: type[_BatchNorm], module: _BatchNorm) -> _BatchNorm:
    """Return torch's own module with the settings, tensors and children of a subclass."""
    plain = kind(module.num_features, module.eps, module.momentum)
    plain.affine = module.affine
    plain.track_running_stats = module.track_running_stats
    plain.training = module.training
    for store in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(plain, store, getattr(module, store))
    return plain


def _call_module(node: fx.Node, path: str) -> None:
    graph, sources = node.graph, node.all_input_nodes
    with graph.inserting_before(node):
        called = graph.call_module(path, (_arguments(node)["input"],))
    called.meta.update(node.meta)
    node.replace_all_uses_with(called)
    graph.erase_node(node)
    for source in sources:
        if source.op == "get_attr" and not source.users:
            graph.erase_node(source)
