"""What a captured model takes and returns, and the placeholders that it begins with."""

from __future__ import annotations

import inspect
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxprune.capture.trees import Container, Leaf, unpack

__all__ = ["Interface", "add_placeholders", "named_arguments"]

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True, slots=True)
class Interface:
    """What a model takes and returns.

    Attributes
    ----------
    inputs : tuple of (str, tree)
        The arguments of its forward, see `fxprune.capture.trees`; leaves are the flat inputs.
    outputs : tree
        Leaves are the flat outputs.
    """

    inputs: tuple[tuple[str, Any], ...]
    outputs: Any


def named_arguments(model: nn.Module, tree: Container) -> tuple[tuple[str, Any], ...]:
    """Return the trees of the inputs by the names of forward's arguments.

    Arguments that are left out and come last are there with their defaults.

    Parameters
    ----------
    model : nn.Module
    tree : Container
        Of ``(args, kwargs)``.
    """
    positional, keywords = tree.items
    names, star = [], "args"
    left_out: list[tuple[str, Any]] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            star = parameter.name
        given = parameter.name in keywords.keys
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names.append(parameter.name)
            given = given or len(names) <= len(positional.items)
        if isinstance(parameter.default, _PLAIN) and not given:
            left_out.append((parameter.name, parameter.default))
        elif given:
            left_out.clear()  # what follows is given: these cannot be arguments with a default
    names += [f"{star}_{i}" for i in range(len(positional.items) - len(names))]
    return (
        *zip(names, positional.items, strict=False),
        *zip(keywords.keys, keywords.items, strict=True),
        *left_out,
    )


def add_placeholders(graph: fx.Graph, inputs: tuple[tuple[str, Any], ...]) -> list[fx.Node]:
    """Create the placeholders of a graph, and return the nodes of the flat inputs.

    Arguments that are no tensors must be what they were at capture.

    Parameters
    ----------
    graph : fx.Graph
        An empty one.
    inputs : tuple of (str, tree)
        As in `Interface`.
    """
    found, made = dict[int, fx.Node](), []
    constant = [not isinstance(tree, (Leaf, Container)) for _, tree in inputs]
    for place, (name, tree) in enumerate(inputs):
        default = (tree,) if all(constant[place:]) else ()
        made.append(graph.create_node("placeholder", name, default, name=name))
    for node, (name, tree) in zip(made, inputs, strict=True):
        if isinstance(tree, (Leaf, Container)):
            unpack(graph, tree, node, found)
        else:
            same = graph.call_function(operator.eq, (node, tree))
            message = f"the model was captured with {name}={tree!r}"
            graph.call_function(torch._assert, (same, message))
    return [found[i] for i in sorted(found)]
