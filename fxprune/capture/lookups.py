"""Nodes that only read a tensor or compute with sizes: where they stand in a graph is free."""

from __future__ import annotations

from torch import fx

__all__ = ["drop_unread", "is_lookup"]


def drop_unread(graph: fx.Graph) -> None:
    """Erase tensors, sizes and the device where nobody reads them."""
    for node in reversed(list(graph.nodes)):
        if not node.users and is_lookup(node):
            graph.erase_node(node)


def is_lookup(node: fx.Node) -> bool:
    """Return whether a node only reads a tensor or computes with sizes: where it stands is free."""
    if node.op == "get_attr" or node.target in (getattr, "size"):
        return True
    name = getattr(node.target, "__name__", "")
    sizes = getattr(node.target, "__module__", "") == "_operator" or name.startswith("sym_")
    return node.op == "call_function" and sizes and all(map(is_lookup, node.all_input_nodes))
