"""`auto_gate`: from a model to its gated form."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import nn
from torch.export import ExportedProgram

from fxprune._frames import forget_frames
from fxprune.analysis.policy import Attention, check_attention
from fxprune.assemble import Ignored, analyse, analyse_guessing, assemble
from fxprune.assemble_regions import gate_known_regions, gate_regions
from fxprune.capture import capture, is_final, joined, ways
from fxprune.capture.program import module_of
from fxprune.errors import (
    CaptureError,
    ConfigError,
    FxpruneError,
    InputError,
    UnsupportedOpError,
)
from fxprune.gated import GatedModule
from fxprune.gated_graph import GatedGraph
from fxprune.inputs import ExampleInputs, Inputs, fit_inputs, normalize_inputs
from fxprune.settings import Recipe, Settings, check_branches, check_round_to

__all__ = ["Ignore", "auto_gate", "gate_again"]

Ignore = str | re.Pattern[str] | type[nn.Module] | nn.Module


def auto_gate(
    model: nn.Module | ExportedProgram,
    example_inputs: ExampleInputs | None = None,
    *,
    ignore: Sequence[Ignore] | Ignore = (),
    round_to: int = 1,
    unknown: Literal["freeze", "error"] = "freeze",
    attention: Attention = "both",
    branches: bool = False,
) -> GatedModule:
    """Capture a model, find its groups of coupled channels, and put gates on all of them.

    Parameters
    ----------
    model : nn.Module, torch.fx.GraphModule or torch.export.ExportedProgram
        Never changed; one deep copy is made. An exported program stays in the mode it was exported
        in, and brings its own example inputs.
    example_inputs : Tensor, tuple of Tensor or dict of keyword arguments, optional
        Only shapes and dtypes matter. Guessed from the first layer when left out. Sizes that
        torch.export found to be fixed are those of the example. Costs are those
        of one forward at this shape.
    ignore : sequence of str, re.Pattern, module type or module
        What must keep its own output width: names of modules or parameters, patterns searched in
        these names, types, or modules of `model`. The input side of an ignored layer still follows
        its producers.
    round_to : int
        Widths that budgets choose on this model stay multiples of this (see `fxprune.prune`);
        masks set by hand may be anything.
    unknown : {"freeze", "error"}
        What to do with an operator that has no rule: freeze the channels that reach it, with the
        reason, or raise an `UnsupportedOpError`.
    attention : {"head", "head_dim", "both", "off"}
        What of attention to prune: whole heads, positions inside heads (the same in all heads of a
        layer; those of query and key apart from those of value), both, or neither. Channels
        outside of attention are pruned whatever it says. Scales keep their value.
    branches : bool
        Whether to prune branches as well: operands of residual adds, each a group of kind
        ``"branch"`` with one unit. Without it the other operand takes the place of the sum, and
        what was needed for the branch only goes. Not those with a part that is ignored.

    Returns
    -------
    GatedModule
        With all gates open it computes what `model` computes, in the mode `model` is in.

    Raises
    ------
    ConfigError
        If `model` is not a module, is on the meta device, an entry of `ignore` matches nothing,
        or an option has a value it cannot have.
    CaptureError
        If the model cannot be captured as a graph, neither by symbolic tracing, with or without
        known shapes, nor by torch.export; names the line of its forward and what each said.
    InputError
        If it does not run on the example inputs, or none could be guessed.
    UnsupportedOpError
        If an operator has no rule and `unknown` is "error".

    Examples
    --------
    >>> import torch, fxprune
    >>> net = torch.nn.Sequential(
    ...     torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)
    ... )
    >>> gated = fxprune.auto_gate(net, torch.zeros(1, 3, 8, 8))
    >>> [str(group) for group in gated.groups]
    ['0 (8 channel units, 3 axes)']
    """
    inputs = None if example_inputs is None else normalize_inputs(example_inputs)
    if isinstance(model, ExportedProgram):
        inputs = inputs or model.example_inputs
        model = module_of(model)
    _check_model(model)
    check_round_to(round_to)
    if unknown not in ("freeze", "error"):
        raise ConfigError(
            f"The 'unknown' parameter must be 'freeze' or 'error'. Got {unknown!r} instead."
        )
    check_attention(attention)
    check_branches(branches)
    ignored = _ignored(model, ignore)
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
    settings = Settings.of(
        inputs or ((), {}), [n for n in names if ignored(n)], round_to, attention, branches
    )
    try:
        return _gate_whole(model, inputs, ignored, unknown, settings)
    except (CaptureError, UnsupportedOpError) as whole:
        if isinstance(whole, UnsupportedOpError) and unknown == "error":
            raise
        return gate_regions(_copy(model), inputs, ignored, unknown, settings, whole)


def _gate_whole(
    model: nn.Module,
    inputs: Inputs | None,
    ignored: Ignored,
    unknown: str,
    settings: Settings,
    way: str = "",
) -> GatedModule:
    """Gate a model by the first way of capture whose graph can be analysed, or by one way."""
    failures: list[FxpruneError] = []
    for name in ways(model, way):
        try:
            return _gate_by(name, _copy(model), inputs, ignored, unknown, settings)
        except (CaptureError, InputError, UnsupportedOpError) as error:
            failures.append(error)
            forget_frames(error)  # they hold the copy that was worked on
            if is_final(error) or (isinstance(error, InputError) and inputs is None):
                break  # nothing else helps, or nothing to run it on was found
            if isinstance(error, UnsupportedOpError) and unknown == "error":
                break
    told = [error for error in failures if isinstance(error, CaptureError)]
    if len(told) == len(failures) > 1:
        raise joined(model, told) from told[-1]
    raise next((error for error in failures if error not in told), failures[0])


def _gate_by(
    way: str,
    private: nn.Module,
    inputs: Inputs | None,
    ignored: Ignored,
    unknown: str,
    settings: Settings,
) -> GatedModule:
    captured = capture(private, inputs, way)
    known = inputs or captured.inputs
    if known is None:
        known, plan = analyse_guessing(captured, ignored, unknown, settings)
    else:
        plan = analyse(captured, known, ignored, unknown, settings)
    return assemble(captured, plan, replace(settings.with_inputs(known), captured=captured.way))


def gate_again(model: nn.Module | ExportedProgram, recipe: Recipe) -> GatedModule:
    """Gate a model exactly as a recipe says.

    Parameters
    ----------
    model : nn.Module
        Of the architecture that the recipe was made for, with any weights. Never changed.
    recipe : Recipe

    Returns
    -------
    GatedModule
        With all gates open. A model that was captured by regions is not run: the recipe knows them.

    Raises
    ------
    FxpruneError
        As for `auto_gate`.
    """
    if isinstance(model, ExportedProgram):
        model = module_of(model)
    _check_model(model)
    ignored = _ignored(model, recipe.ignored)
    inputs = fit_inputs(model, recipe.inputs)  # it may have been gated in another precision
    settings = Settings.of(
        inputs, recipe.ignored, attention=recipe.attention, branches=recipe.branches
    )
    if recipe.borders:
        return gate_known_regions(_copy(model), recipe.borders, ignored, settings)
    return _gate_whole(model, inputs, ignored, "freeze", settings, recipe.captured)


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(
            "The 'model' parameter of auto_gate must be a torch.nn.Module.",
            seen=f"{model!r} of type {type(model).__name__}"[:200],
            hint="build the model first: auto_gate(torchvision.models.resnet18())",
        )
    if isinstance(model, GatedModule):
        raise ConfigError(
            "The model given to auto_gate is gated already.",
            hint="call compact() on it first to prune what is left once more",
        )
    held = {**model._modules, **model._parameters, **model._buffers}
    taken = next((name for name in held if hasattr(GatedGraph, name)), None)
    if taken is not None:
        raise ConfigError(
            "A part of the model has a name that a gated or captured model uses itself.",
            where=taken,
            hint=f"rename self.{taken}, or give nn.Sequential(model)",
        )
    if model._forward_hooks or model._forward_pre_hooks:
        raise ConfigError(
            "The model given to auto_gate has forward hooks of its own, which capture cannot see.",
            hint="remove them, or give nn.Sequential(model): hooks of inner modules are captured",
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ConfigError(
                "The model given to auto_gate is on the meta device: it has shapes but no values.",
                where=name,
                hint="build it on a real device, or call model.to_empty(device='cpu') and load "
                "its weights",
            )


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ConfigError(
            f"{type(model).__name__} cannot be copied, and fxprune never works on the caller's "
            f"own model: {error}",
            hint="make copy.deepcopy(model) work; tensors with a gradient history are the "
            "usual cause",
        ) from error


def _ignored(model: nn.Module, ignore: Sequence[Ignore] | Ignore) -> Callable[[str], str | None]:
    """Return a function from parameter names to the reason why they are ignored, or None."""
    single = (str, re.Pattern, type, nn.Module)
    entries = list(ignore) if isinstance(ignore, (Sequence, set, frozenset)) else [ignore]
    if isinstance(ignore, single):
        entries = [ignore]
    modules = dict(model.named_modules(remove_duplicate=False))
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    names = [n for n, _ in tensors]
    first = {id(t): n for n, t in reversed(tensors)}  # tied tensors go by their first name
    canonical = {n: first[id(t)] for n, t in tensors}
    hit: set[str] = set()
    for entry in entries:
        found = [n for n in names if _matches(n, entry, modules)]
        if not found:
            raise ConfigError(
                f"The entry {entry!r} of 'ignore' matches no module or parameter.",
                seen=f"names such as {', '.join(names[:3])}",
                hint="use a name from model.named_modules(), a compiled pattern, a module type "
                "or a module of the model",
            )
        hit.update(canonical[n] for n in found)
    return lambda name: "the caller asked to ignore it" if name in hit else None


def _matches(name: str, entry: Ignore, modules: dict[str, nn.Module]) -> bool:
    parts = name.split(".")
    owners = [".".join(parts[:i]) for i in range(len(parts))]
    if isinstance(entry, str):
        return entry == name or entry in owners[1:]
    if isinstance(entry, re.Pattern):
        return entry.search(name) is not None
    if isinstance(entry, type):
        return any(isinstance(modules.get(o), entry) for o in owners[1:])
    if isinstance(entry, nn.Module):
        return any(modules.get(o) is entry for o in owners)
    raise ConfigError(
        "The 'ignore' parameter takes names, compiled patterns, module types and modules.",
        seen=f"{entry!r} of type {type(entry).__name__}",
    )
