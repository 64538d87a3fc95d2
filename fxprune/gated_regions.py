"""The gated form of a model that is captured in parts: its Python, with gated graphs inside."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from fxprune._copies import live_stage, match, own_tensors, share_tensors
from fxprune._graphs import graph_from_records, graph_to_records
from fxprune.analysis.plan import Plan
from fxprune.borders import Borders, region_key, split_key
from fxprune.capture.regions import places
from fxprune.gated import GatedModule
from fxprune.gates import GateVector
from fxprune.modes import join_modes
from fxprune.notes import RECIPE, notes
from fxprune.passes.drop_branches import DropBranches
from fxprune.passes.fit_borders import FitBorders
from fxprune.passes.insert_gates import GATES
from fxprune.passes.pipeline import Pipeline
from fxprune.passes.remove_gates import RemoveGates
from fxprune.passes.resize_literals import ResizeLiterals
from fxprune.passes.slice_channels import SliceChannels
from fxprune.settings import Settings

__all__ = ["GatedRegions"]


class GatedRegions(GatedModule):
    """A model that keeps its Python, with gates in the parts of it that are captured as graphs.

    The model's modules are this module's, under their own names; attributes that this class does
    not have are looked up in the model. A region runs its gated graph instead of its own forward.

    Parameters
    ----------
    python : nn.Module
        The model; its regions are given gated forwards.
    graphs : mapping of str to fx.Graph
        Gated graphs over the whole model's names, by `fxprune.borders.region_key`.
    gates : GateVector
        The gates of all regions.
    plan : Plan
    settings : Settings

    Notes
    -----
    Costs are those of the run on the example inputs that found the regions: where the number of
    calls or the size of a batch depends on the data (proposals), these of that run are counted.
    """

    _python: nn.Module

    def __init__(
        self,
        python: nn.Module,
        graphs: Mapping[str, fx.Graph],
        gates: GateVector,
        plan: Plan,
        settings: Settings,
    ) -> None:
        super().__init__()
        state = self.__dict__
        state["_python"] = python  # not a child: its children are this module's own
        state["_parameters"], state["_buffers"] = python._parameters, python._buffers
        self._non_persistent_buffers_set = python._non_persistent_buffers_set
        state["_modules"] = {**python._modules, GATES: gates}
        self._graphs = dict(graphs)
        self._functions: dict[str, Callable[..., Any]] = {}
        self._describe(plan, settings)
        self.training = python.training
        for path in self.regions:
            module = python.get_submodule(path)
            module.forward = _RegionForward(self, module, path)

    @property
    def regions(self) -> tuple[str, ...]:
        """Paths of the parts that are captured as graphs."""
        return tuple(dict.fromkeys(split_key(key)[0] for key in self._graphs))

    @property
    def graphs(self) -> dict[str, fx.Graph]:
        """The gated graphs: by ``path:mode``, mode ``eval``, or ``train`` where that differs."""
        return dict(self._graphs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        self._python.training = self.training
        return self._python.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Look in this module, then in the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            python = self.__dict__.get("_python")
            if python is None:
                raise
            return getattr(python, name)

    def run_region(self, path: str, training: bool, args: Any, kwargs: Any) -> Any:
        """Run the gated graph of a region; `training` is the region's own mode."""
        key = region_key(path, "train")
        if not training or key not in self._graphs:
            key = region_key(path, "eval")
        if key not in self._functions:
            made = fx.GraphModule(self, copy.deepcopy(self._graphs[key]))
            self._functions[key] = type(made).forward
        return self._functions[key](self, *args, **kwargs)

    # -- the compact model
    def compact(self) -> nn.Module:
        """Return the physically small model that computes what this one computes.

        Returns
        -------
        nn.Module
            A copy of the original model whose regions are compact GraphModules of plain torch
            modules; it needs no fxprune to run. It is in the mode this module is in.
        """
        keep = self._keep_vector()
        shared, own = self._shared_python()
        tensors = Borders.from_json(self.settings.borders).tensors
        for path in self.regions:
            original = shared.get_submodule(path)
            stages = {
                mode: self._compact_region(shared, path, mode, keep)
                for mode in ("eval", "train")
                if region_key(path, mode) in self._graphs
            }
            made = stages["eval"] if len(stages) == 1 else join_modes(stages)
            made.training = original.training
            _show(made, original, [n[len(path) + 1 :] for n in tensors if n.startswith(f"{path}.")])
            for name, parent in places(shared, original):
                parent._modules[name] = made
        own_tensors(shared, own)
        shared.training = self.training
        notes(shared)[RECIPE] = self.settings.recipe(self.original_keep)
        return shared

    def _shared_python(self) -> tuple[nn.Module, dict[int, Tensor]]:
        """Return a copy of the model without gated forwards, and the tensors that it shares."""
        forwards = [vars(self._python.get_submodule(path))["forward"] for path in self.regions]
        shared, own = share_tensors(self._python, forwards)
        for path in self.regions:
            shared.get_submodule(path).__dict__.pop("forward", None)
        return shared, own

    def _compact_region(self, root: nn.Module, path: str, mode: str, keep: Any) -> fx.GraphModule:
        """Return one graph of a region in compact form; the modules of `root` are cut."""
        key = region_key(path, mode)
        graph = self._captured(key)
        root._modules[GATES] = self.get_submodule(GATES)
        stage = live_stage(root, graph)
        Pipeline(
            (
                RemoveGates(),
                DropBranches(self._whole_plan, self._full(keep), key),
                SliceChannels(self.plan, keep, key),
                ResizeLiterals(self._whole_plan, self._full(keep), key),
                FitBorders(self._whole_plan, self._full(keep), key),
            )
        )(stage)
        root._modules.pop(GATES, None)
        return _rooted(stage, path, mode)

    # -- a smaller one in its place
    def _gated_graphs(self) -> Mapping[str, fx.Graph]:
        return self._graphs

    def _shared_root(self) -> nn.Module:
        return self._shared_python()[0]

    def _take_graphs(self, graphs: Mapping[str, fx.Graph]) -> None:
        self._graphs = dict(graphs)
        self._functions = {}

    # -- module behaviour
    def __getstate__(self) -> dict[str, Any]:
        records = {key: graph_to_records(graph) for key, graph in self._graphs.items()}
        return {**self.__dict__, "_graphs": records, "_functions": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        graphs = {key: graph_from_records(records) for key, records in state["_graphs"].items()}
        super().__setstate__({**state, "_graphs": graphs})  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """Name the regions."""
        return f"regions={', '.join(self.regions)}"


class _RegionForward:
    """What a region runs in place of its own forward."""

    def __init__(self, owner: GatedRegions, module: nn.Module, path: str) -> None:
        self.owner = owner
        self.module = module
        self.path = path

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.owner.run_region(self.path, self.module.training, args, kwargs)


def _rooted(stage: fx.GraphModule, path: str, mode: str) -> fx.GraphModule:
    """Return a graph over the whole model's names as a module that takes a region's place."""
    region = stage.get_submodule(path)
    suffix = "" if mode == "eval" else f"_{mode}"
    for node in stage.graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        target = str(node.target)
        if target.startswith(f"{path}."):
            node.target = target[len(path) + 1 :]
        else:  # a constant that a pass made for this graph
            name = f"{target}{suffix}"
            while hasattr(region, name):  # a model that is cut once more has such constants
                name += "_"
            region.register_buffer(name, stage._buffers.pop(target), persistent=False)
            node.target = name
    made = fx.GraphModule(region, stage.graph, class_name="GraphModule")
    match(made, region)
    return made


def _show(made: nn.Module, original: nn.Module, names: list[str]) -> None:
    """Give a compact region what the Python code around it reads of the original one.

    These are the attributes that it has itself, and the modules of the tensors named.
    """
    for name, value in vars(original).items():
        if not name.startswith("_") and not hasattr(made, name):
            setattr(made, name, value)
    for name in names:
        *path, leaf = name.split(".")
        here, there = made, original
        for part in path[:-1]:
            there = getattr(there, part)
            if not hasattr(here, part):
                here.add_module(part, nn.Module())
            here = getattr(here, part)
        last = path[-1] if path else leaf
        if not hasattr(here, last):
            setattr(here, last, getattr(there, last))
