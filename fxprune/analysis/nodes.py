"""What a graph node runs: how to name it, whose code it is, what passes can resize."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fxprune._graphs import fetch

__all__ = ["RESIZABLE", "describe_node", "is_plain", "is_torch", "own_function"]

RESIZABLE = (
    *(_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.PReLU),
    *(nn.RNNBase, nn.RNNCellBase),
    *(_NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm),
)
"""Leaf modules with parameters whose size attributes `slice_channels` brings up to date."""


def describe_node(node: fx.Node) -> str:
    """Return a node's target and, if known, the line of the user's forward that made it."""
    target = (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )
    held = node.args[0] if node.op == "call_method" and node.args else None
    if target == "apply" and isinstance(held, fx.Node):
        target = f"{held.target}.apply"
    stack = node.meta.get("nn_module_stack")
    inside = ""
    if stack and node.op != "call_module":
        path = list(stack.values())[-1][0] if stack else ""
        inside = f" in {path}" if path else ""
    line = str(node.meta.get("fxprune_source", "")).rpartition("site-packages/")[2]
    return f"{target}{inside}" + (f" ({line})" if line else "")


def is_plain(module: nn.Module) -> bool:
    """Return whether a leaf module runs nothing but torch's own code."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    lists = getattr(module, "parametrizations", None)
    held = [] if lists is None else [p for name, p in lists.named_modules() if name.count(".") == 1]
    parts = [module, *held]
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and all(type(p).__module__.partition(".")[0] == "torch" for p in parts)


def is_torch(root: nn.Module, node: fx.Node) -> bool:
    """Return whether the code a node runs is torch's own, which takes its sizes from its inputs."""
    if node.op == "call_function":
        module = getattr(node.target, "__module__", "") or ""
        if module.startswith("torch._ops."):  # a library may add operators of its own
            return module.rpartition(".")[2] in ("aten", "prims")
        return module.partition(".")[0] in ("torch", "_operator", "math", "builtins", "")
    if node.op == "call_module":
        return is_plain(fetch(root, str(node.target)))
    return own_function(root, node) is None


def own_function(root: nn.Module, node: fx.Node) -> type[torch.autograd.Function] | None:
    """Return the class whose ``apply`` a node calls, if it is an own `torch.autograd.Function`."""
    held = node.args[0] if node.op == "call_method" and node.args else None
    if not isinstance(held, fx.Node) or held.op != "get_attr" or node.target != "apply":
        return None
    cls = fetch(root, str(held.target))
    return cls if isinstance(cls, type) and issubclass(cls, torch.autograd.Function) else None
