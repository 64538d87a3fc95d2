"""One capture for each mode, and one graph where both are the same."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import torch
from torch import fx, nn

from fxprune.capture.plain_modules import use_plain_modules
from fxprune.capture.transcribe import is_lookup
from fxprune.errors import CaptureError

__all__ = ["capture_modes"]


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
    if _fingerprint(graphs["train"]) == _fingerprint(graphs["eval"]):
        del graphs["train"]
    return graphs


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


def _fingerprint(graph: fx.Graph) -> list[str]:
    """Return what a graph computes, whatever its nodes are called and where sizes are read."""
    numbers: dict[fx.Node, str] = {}
    steps: list[str] = []
    for node in graph.nodes:
        arguments = fx.map_arg((node.args, node.kwargs), numbers.__getitem__)
        step = f"{node.op} {node.target} {arguments}"
        if is_lookup(node):
            numbers[node] = f"#{sha256(step.encode()).hexdigest()}"
        else:
            numbers[node] = f"%{len(steps)}"
            steps.append(step)
    return steps
