"""The sums of a graph: nodes that add two tensors, whatever their spelling."""

from __future__ import annotations

import operator

import torch
from torch import fx

from fxprune._compat import OpOverload, op_name

__all__ = ["summands"]

_FUNCTIONS = (operator.add, operator.iadd, torch.add)
_METHODS = ("add", "add_", "__add__", "__iadd__")
_OPERATORS = ("aten::add", "aten::add_")


def summands(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two nodes whose values a node adds, or None if that is not all it does."""
    if not _adds(node) or set(node.kwargs) - {"input", "other", "alpha"}:
        return None
    given = dict(zip(("input", "other"), node.args, strict=False), **node.kwargs)
    first, second = given.get("input"), given.get("other")
    if len(node.args) > 2 or given.get("alpha", 1) != 1:
        return None
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return None
    return first, second


def _adds(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METHODS
    if isinstance(node.target, OpOverload):
        return op_name(node.target) in _OPERATORS
    return node.op == "call_function" and node.target in _FUNCTIONS
