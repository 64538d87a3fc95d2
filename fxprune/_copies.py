"""Copies of modules that share or own their tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["holder", "live_stage", "match", "own_functions", "own_tensors", "share_tensors"]


def holder(module: nn.Module) -> nn.Module:
    """Return a plain module with the same children, parameters, buffers and mode."""
    made = nn.Module()
    for store in ("_modules", "_parameters", "_buffers"):
        made.__dict__[store] = dict(getattr(module, store))
    made._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    extra = {k: v for k, v in module.__dict__.items() if k.startswith("_tensor_constant")}
    extra |= own_functions(module)
    made.__dict__.update(extra)
    made.training = module.training
    return made


def live_stage(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a GraphModule whose modules are those of `root`: what a pass changes, changes there.

    Parameters
    ----------
    root : nn.Module
    graph : fx.Graph
        Its names start at `root`.
    """
    stage = fx.GraphModule(root, graph)
    for store in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
        stage.__dict__[store] = getattr(root, store)
    return stage


def own_functions(module: nn.Module) -> dict[str, type[torch.autograd.Function]]:
    """Return the classes with a gradient of their own that a captured graph calls, by attribute."""
    return {
        name: held
        for name, held in module.__dict__.items()
        if isinstance(held, type) and issubclass(held, torch.autograd.Function)
    }


def match(module: nn.Module, root: nn.Module) -> None:
    """Give what a GraphModule made anew on the way the modes and the persistence it has in `root`.

    Constants that tracing found are no state: they do not belong into the state_dict.
    """
    sources = dict(root.named_modules())
    for path, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            continue
        if type(child) is nn.Module:
            child.training = sources[path].training if path in sources else root.training
        known = sources[path]._non_persistent_buffers_set if path in sources else set()
        constants = {name for name in child._buffers if name.startswith("_tensor_constant")}
        child._non_persistent_buffers_set |= (known & child._buffers.keys()) | constants


def share_tensors(root: nn.Module, also: Iterable[Any] = ()) -> tuple[nn.Module, dict[int, Tensor]]:
    """Return a deep copy of a module that shares its tensors, and these by id.

    Slicing makes most of a copy needless. The objects in `also` are shared as well.
    """
    shared: dict[int, Any] = {id(t): t for t in (*root.parameters(), *root.buffers())}
    return copy.deepcopy(root, shared | {id(held): held for held in also}), shared


def own_tensors(root: nn.Module, shared: Mapping[int, Tensor]) -> None:
    """Replace tensors that are still shared by copies; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in root.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # a copy of one has tensors of its own
        for store in (module._parameters, module._buffers):
            for leaf, tensor in store.items():
                if tensor is not None and id(tensor) in shared:
                    if id(tensor) not in made:
                        made[id(tensor)] = copy.deepcopy(tensor)
                    store[leaf] = made[id(tensor)]  # type: ignore[assignment]
