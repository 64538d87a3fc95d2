"""From a captured model to a gated one: canonicalise, analyse, insert gates, join the modes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, fx, nn

from fxprune.analysis.build import Analysis
from fxprune.analysis.plan import Plan
from fxprune.analysis.trace import GraphTrace
from fxprune.borders import split_key
from fxprune.capture import Captured
from fxprune.capture.both_modes import drop_same
from fxprune.capture.guess import candidate_inputs
from fxprune.capture.open_calls import open_calls
from fxprune.errors import InputError, InternalError
from fxprune.gated import GatedModule
from fxprune.gated_graph import GatedGraph
from fxprune.inputs import Inputs
from fxprune.modes import merge_modules
from fxprune.passes.insert_gates import GATES, InsertGates
from fxprune.passes.lower_channel_shuffle import LowerChannelShuffle
from fxprune.passes.resize_literals import REWRITTEN
from fxprune.passes.split_packed import SplitPacked
from fxprune.settings import Settings

__all__ = ["Ignored", "analyse", "analyse_guessing", "assemble", "lower"]

Ignored = Callable[[str], str | None]
"""From a parameter's name to the reason why its output width must stay, or None."""


def analyse(
    captured: Captured, inputs: Inputs, ignored: Ignored, unknown: str, settings: Settings
) -> Plan:
    """Analyse a captured model, and once more if its graphs could be written in better form.

    Parameters
    ----------
    captured : Captured
        Its graphs may be rewritten.
    inputs : tuple (args, kwargs)
        Example inputs.
    ignored : callable
    unknown : {"freeze", "error"}
    settings : Settings
        What of attention is prunable, and whether branches are.

    Raises
    ------
    CaptureError
        If the graphs do something else than the model.
    InputError
        If the model does not run on these inputs.
    """
    captured.check(inputs)
    opened = [open_calls(captured.root, graph, *inputs) for graph in captured.graphs.values()]
    if any(opened):
        drop_same(captured.root, captured.graphs)
    analysis = Analysis(
        captured.root,
        captured.graphs,
        unknown=unknown,
        rewritten=REWRITTEN,
        attention=settings.attention,
        branches=settings.branches,
    )
    return analysis.run(*inputs, ignored, partial(lower, captured))


def lower(captured: Captured, traces: Mapping[str, GraphTrace]) -> bool:
    """Rewrite what the analysis handles better in another form; return whether anything was.

    Parameters
    ----------
    captured : Captured
        Its graphs are rewritten; constants that they need now are added to its root, those of a
        region (see `fxprune.borders.region_key`) to the region.
    traces : mapping of str to GraphTrace
        What the analysis saw of each graph.
    """
    changed = False
    for mode, graph in captured.graphs.items():
        stage = fx.GraphModule(captured.root, graph)
        results = [rewrite(traces[mode])(stage) for rewrite in (LowerChannelShuffle, SplitPacked)]
        if any(result.changed for result in results):
            changed = True
            captured.graphs[mode] = stage.graph
            known = dict(captured.root.named_buffers())
            made = {name: b for name, b in stage._buffers.items() if name not in known}
            _add_constants(captured.root, split_key(mode)[0], made, stage.graph)
    return changed


def _add_constants(
    root: nn.Module, path: str, made: Mapping[str, Tensor | None], graph: fx.Graph
) -> None:
    owner = root.get_submodule(path)
    for name, buffer in made.items():
        if not hasattr(owner, name):  # what tracing found is a plain attribute of the owner
            owner.register_buffer(name, buffer, persistent=False)
    for node in graph.nodes:
        if path and node.op == "get_attr" and node.target in made:
            node.target = f"{path}.{node.target}"


def analyse_guessing(
    captured: Captured, ignored: Ignored, unknown: str, settings: Settings
) -> tuple[Inputs, Plan]:
    """Analyse a captured model on the first likely input that it runs on; return both."""
    failures = []
    for guess in candidate_inputs(captured.root, captured.graphs["eval"]):
        inputs: Inputs = ((guess,), {})
        try:
            return inputs, analyse(captured, inputs, ignored, unknown, settings)
        except InputError as error:
            failures.append((tuple(guess.shape), error))
    shapes = ", ".join(str(shape) for shape, _ in failures)
    first = failures[0][1]
    raise InputError(
        "no guessed input shape fits this model",
        where=first.where,
        seen=f"tried {shapes}; the first failed with: {first.what}",
        hint="pass example_inputs",
    ) from first


def assemble(captured: Captured, plan: Plan, settings: Settings) -> GatedModule:
    """Insert gates into the graph of every mode and join them to one module."""
    graphs: dict[str, fx.Graph] = {}
    root: fx.GraphModule | None = None
    for mode, graph in captured.graphs.items():
        stage = fx.GraphModule(captured.root, graph)
        stage.training = captured.root.training
        if root is not None and hasattr(root, GATES):
            stage.add_module(GATES, root.get_submodule(GATES))
        InsertGates(plan, mode)(stage)
        graphs[mode] = stage.graph
        root = stage if root is None else merge_modules(root, stage)
    if root is None:
        raise InternalError("nothing was captured")
    device = next((p.device for p in root.parameters()), None)
    if device is not None and hasattr(root, GATES):
        root.get_submodule(GATES).to(device)
    return GatedGraph(root, graphs, plan, settings)
