"""The gated form of a model that is captured whole: one GraphModule with gates."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from fxprune._copies import holder, match, own_tensors, share_tensors
from fxprune._graphs import graph_from_records, graph_to_records
from fxprune.analysis.plan import Plan
from fxprune.gated import GatedModule
from fxprune.gates import GateVector
from fxprune.modes import join_modes
from fxprune.notes import RECIPE, notes
from fxprune.origin import Origin
from fxprune.passes.drop_branches import DropBranches
from fxprune.passes.insert_gates import GATES
from fxprune.passes.pipeline import Pipeline
from fxprune.passes.remove_gates import RemoveGates
from fxprune.passes.resize_literals import ResizeLiterals
from fxprune.passes.slice_channels import SliceChannels
from fxprune.settings import Settings

__all__ = ["GatedGraph"]


class GatedGraph(GatedModule, fx.GraphModule):
    """A captured model with gates on every prunable channel.

    Where the original's graph depends on the mode, ``train()`` and ``eval()`` switch between two
    graphs over the same parameters.

    Parameters
    ----------
    root : nn.Module
        Holds everything the graphs refer to; its modules become this module's.
    graphs : mapping of str to fx.Graph
        Gated graph of each mode.
    plan : Plan
    settings : Settings
        How this module was made; enough to make it again from the original architecture.
    origin : Origin, optional
        Where it came from, if it has been shrunk.
    """

    def __init__(
        self,
        root: nn.Module,
        graphs: Mapping[str, fx.Graph],
        plan: Plan,
        settings: Settings,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(root, graphs["eval"], class_name="GatedModule")
        for graph in graphs.values():
            _adopt(self, root, graph)
        if not hasattr(self, GATES):  # nothing is prunable
            self.add_module(GATES, GateVector(plan.n_units))
        self._describe(plan, settings, origin)
        self._mode_graphs = dict(graphs)
        self.training = root.training
        match(self, root)
        self._use_graph(root.training)

    # -- the compact model
    def compact(self) -> fx.GraphModule:
        """Return the physically small model that computes what this one computes.

        Returns
        -------
        torch.fx.GraphModule
            Plain torch modules, no gates; in the mode this module is in. This module is left as it
            is.

        Notes
        -----
        Where the graph depends on the mode, the result picks one of two inner graphs by its
        ``training`` flag. Pickling such a module whole keeps the graph of its current mode only, as
        torch.fx pickles by tracing anew; its state_dict is not affected.
        """
        root, own = share_tensors(holder(self))
        keep, plan = self._keep_vector(), self._whole_plan
        full = self._full(keep)
        stages = {}
        sliced: dict[int, Tensor] = {}
        for mode in self._mode_graphs:
            stage = fx.GraphModule(root, self._captured(mode), class_name="GraphModule")
            Pipeline(
                (
                    RemoveGates(),
                    DropBranches(plan, full, mode),
                    SliceChannels(self.plan, keep, mode, sliced),
                    ResizeLiterals(plan, full, mode),
                )
            )(stage)
            if self._whole_plan.removed(
                mode, self._full(keep)
            ):  # made anew, it takes over only what is still used
                stage = fx.GraphModule(stage, stage.graph, class_name="GraphModule")
            stages[mode] = stage
        result = stages["eval"] if len(stages) == 1 else join_modes(stages)
        own_tensors(result, own)
        result.training = self.training
        match(result, self)
        notes(result)[RECIPE] = self.settings.recipe(self.original_keep)
        return result

    # -- a smaller one in its place
    def _gated_graphs(self) -> Mapping[str, fx.Graph]:
        return self._mode_graphs

    def _shared_root(self) -> nn.Module:
        return share_tensors(holder(self))[0]

    def _take_graphs(self, graphs: Mapping[str, fx.Graph]) -> None:
        self._mode_graphs = dict(graphs)
        self._use_graph(self.training)

    # -- module behaviour
    def train(self, mode: bool = True) -> GatedGraph:
        """Set training mode, and the graph that belongs to it."""
        super().train(mode)
        self._use_graph(mode)
        return self

    def _use_graph(self, training: bool) -> None:
        graphs = self.__dict__.get("_mode_graphs", {})
        wanted = graphs.get("train" if training else "eval", graphs.get("eval"))
        if wanted is not None and wanted is not self.graph:
            self.graph = wanted

    def __deepcopy__(self, memo: dict[int, Any]) -> GatedGraph:
        root = copy.deepcopy(holder(self), memo)
        graphs = {mode: copy.deepcopy(graph) for mode, graph in self._mode_graphs.items()}
        made = GatedGraph(root, graphs, self.plan, self.settings, self._origin)
        memo[id(self)] = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        records = {mode: graph_to_records(graph) for mode, graph in self._mode_graphs.items()}
        return _rebuild, (holder(self), records, self.plan, self.settings, self._origin)


def _rebuild(
    root: nn.Module,
    records: Mapping[str, Any],
    plan: Plan,
    settings: Settings,
    origin: Origin | None = None,
) -> GatedGraph:
    graphs = {mode: graph_from_records(r) for mode, r in records.items()}
    return GatedGraph(root, graphs, plan, settings, origin)


def _adopt(module: nn.Module, root: nn.Module, graph: fx.Graph) -> None:
    """Give `module` what `graph` refers to and it does not have yet."""
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        here: Any = module
        there: Any = root
        *path, leaf = str(node.target).split(".")
        for part in path:
            there = getattr(there, part)
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = getattr(here, part)
        if not hasattr(here, leaf):
            value = getattr(there, leaf)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                here.register_buffer(leaf, value)
            else:
                setattr(here, leaf, value)
