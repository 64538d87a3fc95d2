"""Find in an exported graph the nodes that came from one call of one of torch's own modules.

torch.export writes what every module did: ``F.batch_norm`` with the mode baked in, where the model
calls an ``nn.BatchNorm2d``. A call of a leaf module that takes one tensor and returns one can be
written as that call again, because the operators are exactly what the module does to its input. The
module then keeps its own behaviour in both modes, and its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.capture.symbolic import SIZED

__all__ = ["LeafCall", "leaf_calls"]


@dataclass(frozen=True, slots=True)
class LeafCall:
    """One call of a leaf module: its path, the node it reads, the nodes it made, its result."""

    path: str
    source: fx.Node
    nodes: frozenset[fx.Node]
    result: fx.Node


def leaf_calls(graph: fx.Graph, root: nn.Module, prefix: str) -> list[LeafCall]:
    """Return the calls of leaf modules in an exported graph.

    Parameters
    ----------
    graph : fx.Graph
        Its nodes carry ``nn_module_stack``, as torch.export writes it.
    root : nn.Module
        The model that was exported.
    prefix : str
        What stands before the names of its modules in the graph.
    """
    calls: dict[str, tuple[str, list[fx.Node]]] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        for key, (path, _) in stack.items():
            name = str(path).partition("@")[0].removeprefix(prefix)
            if name and _is_leaf(root, name):
                calls.setdefault(str(key), (name, []))[1].append(node)
                break
    found = (_call(name, nodes) for name, nodes in calls.values())
    return [call for call in found if call is not None]


def _is_leaf(root: nn.Module, path: str) -> bool:
    try:
        module = root.get_submodule(path)
    except AttributeError:
        return False
    own = type(module).__module__.startswith("torch.nn.modules.")
    if not own or type(module) is nn.Module or isinstance(module, SIZED):
        return False
    if module.training != root.training:  # its mode is fixed by the model: what it did stays
        return False
    if next(module.children(), None) is not None:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return len(inspect.signature(module.forward).parameters) == 1


_SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _call(path: str, nodes: Iterable[fx.Node]) -> LeafCall | None:
    # a size is written down where it is first needed, and may be read by others
    inside = frozenset(
        n for n in nodes if n.op == "call_function" and not isinstance(n.meta.get("val"), _SIZES)
    )
    read = {s for n in inside for s in n.all_input_nodes if s not in inside}
    sources = [s for s in read if s.op != "get_attr" and isinstance(s.meta.get("val"), Tensor)]
    results = [n for n in inside if any(user not in inside for user in n.users)]
    if len(sources) != 1 or len(results) != 1:
        return None
    if not isinstance(results[0].meta.get("val"), Tensor):
        return None
    return LeafCall(path, sources[0], inside, results[0])
