"""From a model that cannot be captured whole to its gated form: find regions, analyse, gate."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, fx, nn

from fxprune._copies import live_stage
from fxprune.analysis.plan import Plan
from fxprune.analysis.regions import RegionAnalysis
from fxprune.assemble import Ignored, lower
from fxprune.borders import Borders, MisfitError, split_key
from fxprune.capture import Captured
from fxprune.capture.guess import likely_inputs
from fxprune.capture.regions import Regions, find_regions, known_regions
from fxprune.errors import FxpruneError, InputError
from fxprune.gated_regions import GatedRegions
from fxprune.gates import GateVector
from fxprune.inputs import Inputs, fit_inputs, iter_leaves, map_tensors
from fxprune.passes.insert_gates import GATES, InsertGates
from fxprune.passes.resize_literals import REWRITTEN
from fxprune.settings import Settings

__all__ = ["gate_known_regions", "gate_regions"]


def gate_regions(
    model: nn.Module,
    inputs: Inputs | None,
    ignored: Ignored,
    unknown: str,
    settings: Settings,
    whole: FxpruneError,
) -> GatedRegions:
    """Gate the parts of a model that can be captured.

    Parameters
    ----------
    model : nn.Module
        A private copy.
    inputs : tuple (args, kwargs) or None
        Example inputs; guessed when None.
    ignored : callable
    unknown : {"freeze", "error"}
    settings : Settings
        Without inputs and borders.
    whole : FxpruneError
        Why the model cannot be captured whole.

    Raises
    ------
    FxpruneError
        `whole`, if no part can be captured either, or nothing in the parts is prunable, or the
        model fails to run just as it failed to be captured.
    InputError
        If the model does not run on the inputs, or on any that were guessed.
    """
    regions = find_regions(model)
    if not regions.graphs:
        raise whole
    try:
        if inputs is None:
            inputs, borders = _settle_guessing(regions)
        else:
            borders = regions.settle(_with_values(inputs))
    except InputError as error:
        if repr(error.__cause__) == repr(whole.__cause__):
            raise whole from error
        raise
    while True:
        if not regions.graphs:
            raise whole
        try:
            plan = _analyse(regions, borders, ignored, unknown, settings)
        except MisfitError as misfit:
            regions.give_up(misfit.path)
            borders = regions.settle(_with_values(inputs))
        else:
            if not plan.groups:
                raise whole
            return _assemble(regions, plan, settings.with_inputs(inputs, borders.to_json()))


def gate_known_regions(
    model: nn.Module, borders: str, ignored: Ignored, settings: Settings
) -> GatedRegions:
    """Gate the parts of a model that an earlier run found, without running it.

    Parameters
    ----------
    model : nn.Module
        A private copy.
    borders : str
        JSON of `Borders`.
    ignored : callable
    settings : Settings
        Complete but for the borders.

    Raises
    ------
    CaptureError
        If the model has no such parts.
    """
    found = Borders.from_json(borders)
    found = replace(
        found,
        calls=tuple(replace(call, inputs=fit_inputs(model, call.inputs)) for call in found.calls),
    )
    regions = known_regions(model, found)
    try:
        plan = _analyse(regions, found, ignored, "freeze", settings)
    except MisfitError as misfit:
        raise InputError(f"a part of the model is not what it was: {misfit}") from misfit
    return _assemble(regions, plan, replace(settings, borders=found.to_json()))


def _settle_guessing(regions: Regions) -> tuple[Inputs, Borders]:
    batches = list(likely_inputs(regions.model))
    guesses: list[Inputs] = [((batch,), {}) for batch in batches]
    guesses += [(([batch[0]],), {}) for batch in batches if batch.dim() == 4]  # a list of images
    failures: list[tuple[Inputs, InputError]] = []
    for guess in guesses:
        try:
            return guess, regions.settle(_with_values(guess))
        except InputError as error:
            failures.append((guess, error))
    first = failures[0][1]
    shapes = [tuple(t.shape) for guess, _ in failures for _, t in iter_leaves(guess)]
    raise InputError(
        "no guessed input fits this model",
        where=first.where,
        seen=f"tried {', '.join(map(str, shapes))}; the first failed with: {first.what}",
        hint="pass example_inputs",
    ) from first


def _with_values(inputs: Inputs) -> Inputs:
    """Give inputs that are only shapes values between 0 and 1, always the same ones."""
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return torch.rand(tensor.shape, generator=generator).to(tensor.dtype)

    filled: Inputs = map_tensors(inputs, fill)
    return filled


def _analyse(
    regions: Regions, borders: Borders, ignored: Ignored, unknown: str, settings: Settings
) -> Plan:
    regions.open_calls(borders)
    analysis = RegionAnalysis(
        regions.model,
        regions.graphs,
        borders,
        unknown=unknown,
        rewritten=REWRITTEN,
        attention=settings.attention,
        branches=settings.branches,
    )
    captured = Captured(regions.model, regions.graphs)
    return analysis.run((), {}, ignored, partial(lower, captured))


def _assemble(regions: Regions, plan: Plan, settings: Settings) -> GatedRegions:
    """Insert gates into all graphs; the model's modules stay where they are."""
    root = regions.model
    gates = GateVector(plan.n_units)
    graphs: dict[str, fx.Graph] = {}
    for key, graph in regions.graphs.items():
        if not _is_prunable(plan, split_key(key)[0]):
            regions.restore(split_key(key)[0])
            continue  # it stays the model's own module
        root._modules[GATES] = gates
        stage = live_stage(root, graph)
        InsertGates(plan, key)(stage)
        graphs[key] = stage.graph
        del root._modules[GATES]
    device = next((p.device for p in root.parameters()), None)
    if device is not None:
        gates.to(device)
    for path in dict.fromkeys(split_key(key)[0] for key in graphs):
        _hold_constants(root.get_submodule(path))
    return GatedRegions(root, graphs, gates, plan, settings)


def _is_prunable(plan: Plan, path: str) -> bool:
    """Return whether anything in a region can be cut."""
    mine = [graph for key, graph in plan.graphs.items() if split_key(key)[0] == path]
    return any(graph.branches for graph in mine) or any(
        plan.prunable(axis)
        for graph in mine
        for values in graph.trace.values.values()
        for _, ids in values
        for axis in ids
    )


def _hold_constants(region: nn.Module) -> None:
    """Make the constants that tracing found move with their region; they are no state."""
    for module in region.modules():
        for name, value in list(vars(module).items()):
            if name.startswith("_tensor_constant") and isinstance(value, Tensor):
                delattr(module, name)
                module.register_buffer(name, value, persistent=False)
