"""Cut what hard masks have closed out of a gated model, in place, in the middle of a run.

Closed units have no gradient and reach no output, so a model without them goes on training as it
would have with them masked. The smaller model is made beside the one in use, of copies that share
its tensors; only when that has succeeded do its tensors, sizes and graphs take the place of the old
ones, so that an error leaves the model and its optimizers as they were.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune._copies import live_stage
from fxprune._taking import kept_positions
from fxprune.analysis.ids import Ids
from fxprune.analysis.plan import Keep, Plan
from fxprune.analysis.restrict import restricted
from fxprune.errors import InternalError
from fxprune.gates import GateVector
from fxprune.leftovers import Leftovers, remove_modules
from fxprune.optimizer_cut import Cut, OptimizerCut
from fxprune.origin import Origin
from fxprune.passes.drop_branches import DropBranches
from fxprune.passes.fit_borders import FitBorders
from fxprune.passes.insert_gates import GATES, InsertGates
from fxprune.passes.pipeline import Pipeline
from fxprune.passes.remove_gates import RemoveGates
from fxprune.passes.resize_literals import ResizeLiterals
from fxprune.passes.slice_channels import SliceChannels

__all__ = ["NUMBERS", "OWN", "Change", "Draft", "Shrunk", "count_parameters", "cuts_of"]

NUMBERS = "fxprune_numbers"
"""Name of the submodule that holds the look-up tables of shrunk graphs."""

OWN = (GATES, NUMBERS)
"""Names of the submodules that gating and shrinking add."""


@dataclass(frozen=True, slots=True, eq=False)
class Shrunk:
    """What `GatedModule.shrink_` removed.

    Attributes
    ----------
    units : int array, shape (new n_units,)
        The number that each unit had before: per-unit state goes on as ``state[units]``.
    removed : dict of str to int
        How many units each group lost; groups that lost none are not in it. A group that was in a
        removed branch only has lost all.
    params_before, params_after : int
        Number of parameters.
    """

    units: Ids
    removed: dict[str, int]
    params_before: int
    params_after: int

    @classmethod
    def of(cls, plan: Plan, units: Ids, before: int, after: int) -> Shrunk:
        """Describe what is left of a plan's units."""
        lost = np.ones(plan.n_units, dtype=bool)
        lost[units] = False
        counts = {name: int(lost[at].sum()) for name, at in plan.group_slices().items()}
        return cls(units, {name: n for name, n in counts.items() if n}, before, after)

    def __bool__(self) -> bool:
        """Return whether anything was removed."""
        return bool(self.removed)

    def __str__(self) -> str:
        if not self:
            return "nothing was closed, nothing was removed"
        units, groups = sum(self.removed.values()), len(self.removed)
        shares = f"{self.params_before} parameters before, {self.params_after} now"
        return f"{units} units of {groups} groups removed: {shares}"


class Draft:
    """The smaller model, made of copies.

    Parameters
    ----------
    root : nn.Module
        A copy of the gated model's modules that shares its tensors; its modules are changed.
    graphs : mapping of str to fx.Graph
        The gated graphs as they are.
    gates : GateVector
    plan : Plan
    keep : bool array, shape (n_units,)
        What stays.
    origin : Origin or None
        None where the model is still whole.

    Attributes
    ----------
    root, graphs, plan, origin
        Those of the smaller model.
    units : int array, shape (new n_units,)
        The number that each unit had.
    left : Leftovers
        What went with removed branches; the modules in `root` are still there.
    """

    def __init__(
        self,
        root: nn.Module,
        graphs: Mapping[str, fx.Graph],
        gates: GateVector,
        plan: Plan,
        keep: Keep,
        origin: Origin | None,
    ) -> None:
        self.root = root
        before = Origin.of(plan, _ungated(root, graphs, gates)) if origin is None else origin
        for own in OWN:
            root._modules.pop(own, None)
        full = before.full(keep)
        whole = {key: self._without_branches(key, before, full) for key in before.graphs}
        self.left = Leftovers.of(root, before.graphs, whole, before.plan, full)
        self.plan, self.units = restricted(plan, keep, self.left.rests, self.left.tensors)
        self.origin = before.shrunk(keep, whole, self.units)
        cut = {key: self._cut(key, plan, keep, full) for key in whole}
        root.add_module(GATES, GateVector(self.plan.n_units))
        self.graphs = {key: self._gated(key, graph, full) for key, graph in cut.items()}

    def _without_branches(self, key: str, before: Origin, full: Keep) -> fx.Graph:
        """Return a graph as it was captured, less the branches that are removed."""
        stage = live_stage(self.root, before.graph(key))
        Pipeline((RemoveGates(), DropBranches(before.plan, full, key)))(stage)
        return copy.deepcopy(stage.graph)

    def _cut(self, key: str, plan: Plan, keep: Keep, full: Keep) -> fx.Graph:
        """Return a graph that fits the sliced tensors, and slice these."""
        stage = live_stage(self.root, self.origin.graph(key))
        held = set(self.root._buffers)
        Pipeline((SliceChannels(plan, keep, key), ResizeLiterals(self.origin.plan, full, key)))(
            stage
        )
        self._hold(key, stage.graph, self.root._buffers.keys() - held)
        return stage.graph

    def _gated(self, key: str, graph: fx.Graph, full: Keep) -> fx.Graph:
        stage = live_stage(self.root, graph)
        held = set(self.root._buffers)
        InsertGates(self.plan, key)(stage)
        FitBorders(self.origin.plan, full, key)(stage)
        self._hold(key, stage.graph, self.root._buffers.keys() - held)
        return stage.graph

    def _hold(self, key: str, graph: fx.Graph, names: Iterable[str]) -> None:
        """Give the tables that passes made for one graph a place of their own."""
        number = list(self.origin.graphs).index(key)
        path = f"{NUMBERS}.graph{number}"
        moved = {name: self.root._buffers.pop(name) for name in sorted(names)}
        if not moved:
            return
        if NUMBERS not in self.root._modules:
            self.root.add_module(NUMBERS, nn.Module())
        tables = self.root.get_submodule(NUMBERS)
        if not hasattr(tables, f"graph{number}"):
            tables.add_module(f"graph{number}", nn.Module())
        for name, table in moved.items():
            self.root._non_persistent_buffers_set.discard(name)
            self.root.get_submodule(path).register_buffer(name, table, persistent=False)
        for node in graph.nodes:
            if node.op == "get_attr" and node.target in moved:
                node.target = f"{path}.{node.target}"


def _ungated(
    root: nn.Module, graphs: Mapping[str, fx.Graph], gates: GateVector
) -> dict[str, fx.Graph]:
    """Return copies of gated graphs without their gates; modules become plain ones."""
    plain = {}
    for key, graph in graphs.items():
        root._modules[GATES] = gates
        stage = live_stage(root, copy.deepcopy(graph))
        RemoveGates()(stage)
        plain[key] = stage.graph
    return plain


class Change:
    """What has to change in a gated model and its optimizers to become what a draft is.

    Parameters
    ----------
    live : nn.Module
        The gated model.
    draft : Draft
    plan : Plan
        The gated model's, before.
    keep : bool array, shape (n_units,)
    optimizers : sequence of torch.optim.Optimizer

    Raises
    ------
    ConfigError
        If an optimizer's state cannot be cut.
    """

    def __init__(
        self,
        live: nn.Module,
        draft: Draft,
        plan: Plan,
        keep: Keep,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self._live = live
        self._draft = draft.root
        self._left, self._units = draft.left, draft.units
        cuts = cuts_of(live, plan, keep)
        self._tensors: list[tuple[Tensor, Tensor, Cut]] = []
        self._sizes: list[tuple[nn.Module, str, Any]] = []
        for old, new in self._pairs():
            self._compare(old, new, cuts)
        parameters = list(live.named_parameters())
        names = {id(p): name for name, p in parameters}
        gone = {id(p) for name, p in parameters if name in draft.left.tensors}
        self._optimizers = [OptimizerCut(one, names, cuts, gone) for one in optimizers]

    def _pairs(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        made = dict(self._draft.named_modules())
        for path, module in self._live.named_modules():
            if path.partition(".")[0] in OWN or isinstance(module, torch.jit.ScriptModule):
                continue
            if path in self._left.modules:
                continue
            if path not in made or (path and type(made[path]) is not type(module)):
                raise InternalError(
                    f"The smaller model has another module at {path}",
                    seen=f"{type(made.get(path)).__name__} for {type(module).__name__}",
                )
            yield module, made[path]

    def _compare(self, old: nn.Module, new: nn.Module, cuts: Mapping[int, Cut]) -> None:
        """Note the tensors and sizes in which a module differs from its smaller form."""
        known = {id(tensor) for tensor, _, _ in self._tensors}
        for mine, theirs in ((old._parameters, new._parameters), (old._buffers, new._buffers)):
            for leaf, tensor in mine.items():
                small = theirs[leaf]
                if tensor is None or small is None or small is tensor or id(tensor) in known:
                    continue
                known.add(id(tensor))
                self._tensors.append((tensor, small, cuts[id(tensor)]))
        for name, size in vars(new).items():
            if _is_size(size) and vars(old).get(name, size) != size:
                self._sizes.append((old, name, size))

    def apply(self) -> None:
        """Put everything in place."""
        with torch.no_grad():
            grads = [None if t.grad is None else cut.of(t.grad) for t, _, cut in self._tensors]
            for (tensor, small, _), grad in zip(self._tensors, grads, strict=True):
                _replace(tensor, small, grad)
        for module, name, size in self._sizes:
            setattr(module, name, size)
        for module in self._live.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # on the GPU, one block of memory again
        for optimizer in self._optimizers:
            optimizer.apply()
        remove_modules(self._live, self._left)
        self._replace_gates()

    def _replace_gates(self) -> None:
        gates, made = self._live.get_submodule(GATES), self._draft.get_submodule(GATES)
        value = gates._buffers["value"]
        if value is None or not isinstance(gates, GateVector):
            raise InternalError(f"{GATES} is no gate vector", seen=type(gates).__name__)
        made.to(device=value.device, dtype=value.dtype).train(gates.training)
        gates._modules = made._modules
        gates.sampled = _taken(gates.sampled, self._units)
        value.data = made._buffers["value"]  # type: ignore[assignment]
        gates.is_open = True
        self._live._modules.pop(NUMBERS, None)
        if NUMBERS in self._draft._modules:
            self._live.add_module(NUMBERS, self._draft.get_submodule(NUMBERS))


def cuts_of(live: nn.Module, plan: Plan, keep: Keep) -> dict[int, Cut]:
    """Return by ``id`` what stays of every tensor that loses positions."""
    found: dict[int, Cut] = {}
    for name, tensor in (
        *live.named_parameters(remove_duplicate=False),
        *live.named_buffers(remove_duplicate=False),
    ):
        positions = kept_positions(plan, name, keep) if name in plan.shapes else ()
        if any(at is not None for at in positions):
            found.setdefault(id(tensor), Cut(tuple(tensor.shape), positions))
    return found


def _replace(tensor: Tensor, small: Tensor, grad: Tensor | None) -> None:
    """Give a tensor smaller data and a smaller gradient; the object stays the same."""
    tensor.grad = None
    data = small.detach()
    if tensor.requires_grad:
        # A loss that is still around keeps the node alive that adds up this parameter's gradient,
        # and that node the old shape. Another dtype on the way makes autograd forget it.
        other = torch.float32 if data.dtype is torch.float16 else torch.float16
        tensor.data = data.new_empty(0, dtype=other)
    tensor.data = data
    tensor.grad = grad


def count_parameters(module: nn.Module) -> int:
    """Return how many numbers a module's parameters hold, shared ones counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _taken(gates: Tensor | None, units: Ids) -> Tensor | None:
    """Return the entries of some units of a vector, with those of its gradient."""
    if gates is None:
        return None
    at = torch.from_numpy(units).to(gates.device)
    taken = gates.detach()[at].requires_grad_(gates.requires_grad)
    taken.grad = None if gates.grad is None else gates.grad[at]
    return taken


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_size(entry) for entry in value)
    return isinstance(value, int) and not isinstance(value, bool)
