"""Training and evaluation mode, and models with a graph for each over one set of modules."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import fx, nn

from fxprune._copies import own_functions

__all__ = ["in_mode", "join_modes", "merge_modules", "split_modes", "unchanged_buffers"]

_MODES = "modes"


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put a model in one mode; give each module its own back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)  # a module may do more than set its flag
        for module, mode in modes:
            module.training = mode


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[None]:
    """Undo what a run of a model does to its buffers (statistics, a counter of batches)."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            if not torch.equal(buffer, value):  # BatchNorm counts no version up
                with torch.no_grad():
                    buffer.copy_(value)


def join_modes(stages: Mapping[str, fx.GraphModule]) -> fx.GraphModule:
    """Return one GraphModule that calls the graph of its mode; built of plain torch modules.

    Parameters
    ----------
    stages : mapping
        ``"eval"`` and ``"train"``, with the same inputs.
    """
    root = nn.Module()
    root.add_module(_MODES, nn.ModuleList([stages["eval"], stages["train"]]))
    graph = fx.Graph()
    inputs = [
        graph.create_node("placeholder", node.target, node.args)
        for node in stages["eval"].graph.nodes
        if node.op == "placeholder"
    ]
    modes = graph.create_node("get_attr", _MODES)
    training = graph.create_node("get_attr", "training")
    chosen = graph.call_function(operator.getitem, (modes, training))
    graph.output(graph.call_function(operator.call, (chosen, *inputs)))
    return fx.GraphModule(root, graph)


def split_modes(module: fx.GraphModule) -> dict[str, fx.GraphModule] | None:
    """Return the graphs that `join_modes` joined, or None for any other module."""
    modes = getattr(module, _MODES, None)
    calls = [node for node in module.graph.nodes if node.target is operator.call]
    if not isinstance(modes, nn.ModuleList) or len(modes) != 2 or len(calls) != 1:
        return None
    evaluation, training = modes
    if not isinstance(evaluation, fx.GraphModule) or not isinstance(training, fx.GraphModule):
        return None
    return {"eval": evaluation, "train": training}


def merge_modules(root: fx.GraphModule, other: fx.GraphModule) -> fx.GraphModule:
    """Give `root` the modules and tensors that only `other` has, and return it."""
    for path, module in other.named_modules():
        parent, _, leaf = path.rpartition(".")
        if path and not _has(root, path):
            root.get_submodule(parent).add_module(leaf, module)
    for name, parameter in other.named_parameters():
        parent, _, leaf = name.rpartition(".")
        if not hasattr(root.get_submodule(parent), leaf):
            setattr(root.get_submodule(parent), leaf, parameter)
    for name, buffer in other.named_buffers():
        parent, _, leaf = name.rpartition(".")
        if not hasattr(root.get_submodule(parent), leaf):
            root.get_submodule(parent).register_buffer(leaf, buffer)
    root.__dict__.update(own_functions(other))
    return root


def _has(root: nn.Module, path: str) -> bool:
    try:
        root.get_submodule(path)
    except AttributeError:
        return False
    return True
