"""One capture for each mode, and one graph where both are the same.

A capture bakes ``if self.training:`` in. Where both modes give the same graph (almost always) one
is kept; otherwise both are, over one set of parameters. Before they are compared, a traced subclass
of torch's BatchNorm is written as the plain module that it is, see `plain_modules`.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from hashlib import sha256

import torch
from torch import fx, nn

from fxprune._graphs import fetch
from fxprune.capture.lookups import is_lookup
from fxprune.capture.plain_modules import use_plain_modules
from fxprune.errors import CaptureError

__all__ = ["capture_modes", "drop_same", "is_refusal"]


def capture_modes(
    model: nn.Module, capture: Callable[[bool], fx.Graph], refuse: bool = False
) -> dict[str, fx.Graph]:
    """Capture a model in both modes.

    Parameters
    ----------
    model : nn.Module
        Norms that are traced through become plain modules in it.
    capture : callable
        Given whether in training mode, returns the graph.
    refuse : bool
        Where training mode cannot be captured: give it a graph that says so when it is run.

    Returns
    -------
    dict
        ``{"eval": graph}``, and ``"train"`` as well where its graph differs.

    Raises
    ------
    CaptureError
        If `capture` does.
    """
    graphs = {"eval": capture(False)}
    try:
        graphs["train"] = capture(True)
    except CaptureError as error:
        if not refuse:
            raise
        graphs["train"] = _refusing(graphs["eval"], error)
    else:
        use_plain_modules(model, graphs)
        _drop_counters(graphs["train"])
    drop_same(model, graphs)
    return graphs


def drop_same(root: nn.Module, graphs: MutableMapping[str, fx.Graph]) -> None:
    """Drop the training graph where it does what the one for evaluation does.

    Parameters
    ----------
    root : nn.Module
        Holds what the graphs name.
    graphs : mapping
        ``"eval"``, and ``"train"`` where there are two.
    """
    texts = [_fingerprint(root, graph) for graph in graphs.values()]
    if len(texts) == 2 and texts[0] == texts[1]:
        del graphs["train"]


def is_refusal(graph: fx.Graph) -> bool:
    """Return whether a graph stands for a mode that could not be captured."""
    first = next((node for node in graph.nodes if node.op != "placeholder"), None)
    return first is not None and first.target is torch._assert and first.args[0] is False


def _refusing(graph: fx.Graph, error: CaptureError) -> fx.Graph:
    """Return a graph for a mode that could not be captured: it says so when it is run."""
    refusing = fx.Graph()
    refusing.output(refusing.graph_copy(graph, {}))
    first = next(node for node in refusing.nodes if node.op != "placeholder")
    reason = error.what.splitlines()[0] + (f" ({error.where})" if error.where else "")
    message = f"in training mode, {reason}"
    with refusing.inserting_before(first):
        refusing.call_function(torch._assert, (False, message))
    return refusing


def _drop_counters(graph: fx.Graph) -> None:
    """Erase what counts the batches of a norm that is called as a module now: it counts itself."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    for node in list(graph.nodes):
        counted = node.args[0] if node.target == "add_" else None
        if isinstance(counted, fx.Node) and counted.op == "get_attr":
            path, _, name = str(counted.target).rpartition(".")
            if name == "num_batches_tracked" and path in called and not node.users:
                graph.erase_node(node)
                if not counted.users:
                    graph.erase_node(counted)


def _fingerprint(root: nn.Module, graph: fx.Graph) -> list[str]:
    """Return what a graph computes, whatever its nodes are called and where sizes are read."""
    numbers: dict[fx.Node, str] = {}
    steps: list[str] = []
    for node in graph.nodes:
        arguments = fx.map_arg((node.args, node.kwargs), numbers.__getitem__)
        step = f"{node.op} {_target(root, node)} {arguments}"
        if is_lookup(node):
            numbers[node] = f"#{sha256(step.encode()).hexdigest()}"
        else:
            numbers[node] = f"%{len(steps)}"
            steps.append(step)
    return steps


def _target(root: nn.Module, node: fx.Node) -> str:
    """Return what a node calls or reads; constants that each trace names anew go by their value."""
    name = str(node.target)
    if node.op == "get_attr" and name.rpartition(".")[2].startswith("_tensor_constant"):
        value = fetch(root, name).detach().cpu()
        return f"{value.dtype} {tuple(value.shape)} {value.tolist()}"
    return name
