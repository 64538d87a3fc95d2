"""The gated model: a GraphModule with gates, its plan, and the way to its compact form."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx, nn

from fxprune._graphs import graph_from_records, graph_to_records
from fxprune.analysis.dependency import dependency_graph
from fxprune.analysis.plan import ChannelGroup, FrozenAxis, Keep, Member, Plan
from fxprune.cost import Cost, CostModel, ExpectedCost
from fxprune.errors import GateError, InternalError
from fxprune.gates import GateVector
from fxprune.modes import join_modes
from fxprune.passes.insert_gates import GATES
from fxprune.passes.pipeline import Pipeline
from fxprune.passes.remove_gates import RemoveGates
from fxprune.passes.resize_literals import ResizeLiterals
from fxprune.passes.slice_channels import SliceChannels
from fxprune.settings import Settings

__all__ = ["GatedModule"]


class GatedModule(fx.GraphModule):
    """A captured model with gates on every prunable channel.

    Made by `fxprune.auto_gate`. It trains, evaluates, prints, moves, pickles and saves like any
    module; with all gates open it computes what the original computes. Where the original's graph
    depends on the mode, ``train()`` and ``eval()`` switch between two graphs over the same
    parameters.

    Parameters
    ----------
    root : nn.Module
        Holds everything the graphs refer to; its modules become this module's.
    graphs : mapping of str to fx.Graph
        Gated graph of each mode.
    plan : Plan
    settings : Settings
        How this module was made; enough to make it again from the original architecture.
    """

    plan: Plan
    settings: Settings

    def __init__(
        self, root: nn.Module, graphs: Mapping[str, fx.Graph], plan: Plan, settings: Settings
    ) -> None:
        super().__init__(root, graphs["eval"], class_name="GatedModule")
        for graph in graphs.values():
            _adopt(self, root, graph)
        if not hasattr(self, GATES):  # nothing is prunable
            self.add_module(GATES, GateVector(plan.n_units))
        self.plan = plan
        self.settings = settings
        self._cost_model = CostModel(plan)
        self._mode_graphs = dict(graphs)
        self.training = root.training
        _match(self, root)
        self._use_graph(root.training)

    # -- what can be pruned
    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The groups of coupled channels, in execution order."""
        return self.plan.groups

    @property
    def frozen(self) -> tuple[FrozenAxis, ...]:
        """The parameter axes with positions that may not be pruned, each with its reason."""
        return self.plan.frozen

    @property
    def dependency_graph(self) -> nx.MultiGraph[Member]:
        """The dependency graph.

        It has a node per parameter axis, an edge per operation that tied two of them.

        Returns
        -------
        networkx.MultiGraph
            Nodes are `Member` with attributes ``size`` and ``groups`` (names); edges have
            ``operation`` and ``count`` (tied positions).
        """
        return dependency_graph(self.plan)

    # -- masks
    @property
    def keep(self) -> dict[str, Tensor]:
        """The hard masks now: for each group a bool tensor of shape (size,), True where kept."""
        value = self._vector().value
        return {name: value[at] > 0.5 for name, at in self.plan.group_slices().items()}

    def set_keep(self, keep: Mapping[str, Tensor]) -> None:
        """Set hard masks; groups that are not named stay as they are.

        Parameters
        ----------
        keep : mapping of str to bool Tensor, shape (size,)
            By group name; True keeps the unit.

        Raises
        ------
        GateError
            If a name is no group, a mask is not bool, has the wrong length, or keeps nothing.
            Nothing is changed then.
        """
        if not isinstance(keep, Mapping):
            raise GateError(
                "set_keep takes a mapping from group names to bool tensors.",
                seen=f"a {type(keep).__name__}",
                hint="gated.set_keep({gated.groups[0].name: mask})",
            )
        if not keep:
            return
        slices = self.plan.group_slices()
        for name, mask in keep.items():
            _check_mask(name, mask, slices)
        full = self._vector().value[:-1] > 0.5
        for name, mask in keep.items():
            full[slices[name]] = mask.to(full.device)
        self._vector().set_hard(full)

    @contextmanager
    def soft_gates(self, gates: Tensor) -> Iterator[None]:
        """Use soft gates inside a ``with`` block.

        Parameters
        ----------
        gates : Tensor, shape (n_units,), values in [0, 1]
            Units are numbered group after group, in the order of `groups`. Gradients reach it.

        Raises
        ------
        GateError
            If the shape is wrong.
        """
        if not isinstance(gates, Tensor) or tuple(gates.shape) != (self.plan.n_units,):
            raise GateError(
                f"The gate vector must have shape ({self.plan.n_units},): one per unit.",
                seen=str(tuple(gates.shape)) if isinstance(gates, Tensor) else type(gates).__name__,
            )
        vector = self._vector()
        before = vector.soft
        vector.soft = gates
        try:
            yield
        finally:
            vector.soft = before

    # -- cost
    def cost(self) -> Cost:
        """Return the exact cost of what is kept now, at the shape of the example inputs."""
        return self._cost_model.exact(self._keep_vector())

    def cost_of(self, keep: Keep) -> Cost:
        """Return the exact cost of a keep-vector, bool array of shape (n_units,)."""
        return self._cost_model.exact(keep)

    def expected_cost(self, gates: Tensor | None = None) -> ExpectedCost:
        """Return the differentiable cost of soft gates.

        Parameters
        ----------
        gates : Tensor, shape (n_units,), optional
            The gates in use now by default.
        """
        if gates is None:
            vector = self._vector()
            gates = vector.value[:-1] if vector.soft is None else vector.soft
        return self._cost_model.expected(gates)

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
        root, own = _share_tensors(_holder(self))
        keep = self._keep_vector()
        stages = {}
        for mode, graph in self._mode_graphs.items():
            stage = fx.GraphModule(root, copy.deepcopy(graph), class_name="GraphModule")
            Pipeline(
                (
                    RemoveGates(),
                    SliceChannels(self.plan, keep, mode),
                    ResizeLiterals(self.plan, keep, mode),
                )
            )(stage)
            stages[mode] = stage
        result = stages["eval"] if len(stages) == 1 else join_modes(stages)
        _own_tensors(result, own)
        result.training = self.training
        _match(result, self)
        result.meta["fxprune_recipe"] = self.settings.recipe(self.keep)
        return result

    # -- module behaviour
    def train(self, mode: bool = True) -> GatedModule:
        """Set training mode, and the graph that belongs to it."""
        super().train(mode)
        self._use_graph(mode)
        return self

    def _use_graph(self, training: bool) -> None:
        graphs = self.__dict__.get("_mode_graphs", {})
        wanted = graphs.get("train" if training else "eval", graphs.get("eval"))
        if wanted is not None and wanted is not self.graph:
            self.graph = wanted

    def _vector(self) -> GateVector:
        vector = self.get_submodule(GATES)
        if not isinstance(vector, GateVector):
            raise InternalError(f"{GATES} is no gate vector", seen=type(vector).__name__)
        return vector

    def _keep_vector(self) -> Keep:
        keep: Keep = (self._vector().value[:-1] > 0.5).cpu().numpy()
        return keep

    def __deepcopy__(self, memo: dict[int, Any]) -> GatedModule:
        root = copy.deepcopy(_holder(self), memo)
        graphs = {mode: copy.deepcopy(graph) for mode, graph in self._mode_graphs.items()}
        made = GatedModule(root, graphs, self.plan, self.settings)
        memo[id(self)] = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        records = {mode: graph_to_records(graph) for mode, graph in self._mode_graphs.items()}
        return _rebuild, (_holder(self), records, self.plan, self.settings)


def _rebuild(
    root: nn.Module, records: Mapping[str, Any], plan: Plan, settings: Settings
) -> GatedModule:
    graphs = {mode: graph_from_records(r) for mode, r in records.items()}
    return GatedModule(root, graphs, plan, settings)


def _holder(module: nn.Module) -> nn.Module:
    """Return a plain module with the same children, parameters, buffers and mode."""
    holder = nn.Module()
    for store in ("_modules", "_parameters", "_buffers"):
        holder.__dict__[store] = dict(getattr(module, store))
    holder._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    extra = {k: v for k, v in module.__dict__.items() if k.startswith("_tensor_constant")}
    holder.__dict__.update(extra)
    holder.training = module.training
    return holder


def _match(module: nn.Module, root: nn.Module) -> None:
    """Give what a GraphModule made anew on the way the modes and the persistence it has in `root`.

    Constants that tracing found are no state: they do not belong into the state_dict.
    """
    sources = dict(root.named_modules())
    for path, child in module.named_modules():
        if type(child) is nn.Module:
            child.training = sources[path].training if path in sources else root.training
        known = sources[path]._non_persistent_buffers_set if path in sources else set()
        constants = {name for name in child._buffers if name.startswith("_tensor_constant")}
        child._non_persistent_buffers_set |= (known & child._buffers.keys()) | constants


def _share_tensors(root: nn.Module) -> tuple[nn.Module, dict[int, Tensor]]:
    """Return a deep copy of a module that shares its tensors, and these by id.

    Slicing makes most of a copy needless.
    """
    shared: dict[int, Any] = {id(t): t for t in (*root.parameters(), *root.buffers())}
    return copy.deepcopy(root, dict(shared)), shared


def _own_tensors(root: nn.Module, shared: Mapping[int, Tensor]) -> None:
    """Replace tensors that are still shared by copies; tied ones stay tied."""
    made: dict[int, Tensor] = {}
    for module in root.modules():
        for store in (module._parameters, module._buffers):
            for leaf, tensor in store.items():
                if tensor is not None and id(tensor) in shared:
                    if id(tensor) not in made:
                        made[id(tensor)] = copy.deepcopy(tensor)
                    store[leaf] = made[id(tensor)]  # type: ignore[assignment]


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


def _check_mask(name: str, mask: Any, slices: Mapping[str, slice]) -> None:
    if name not in slices:
        close = difflib.get_close_matches(str(name), slices, n=3) or list(slices)[:3]
        raise GateError(
            f"There is no group named {name!r}.",
            seen=f"groups such as {', '.join(close)}"
            if close
            else "a model with no prunable group",
            hint="use the names in gated.groups",
        )
    size = slices[name].stop - slices[name].start
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        seen = f"{mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise GateError(
            f"The mask of group {name!r} must be a bool tensor.",
            seen=seen,
            hint="for scores, pass scores > 0",
        )
    if tuple(mask.shape) != (size,):
        raise GateError(
            f"The mask of group {name!r} must have shape ({size},).", seen=str(tuple(mask.shape))
        )
    if not mask.any():
        raise GateError(
            f"The mask of group {name!r} keeps nothing.",
            seen=f"{size} times False",
            hint="keep at least one unit: a group without channels has no output",
        )
