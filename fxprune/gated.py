"""What every gated model is: a module with a plan, a gate vector, and a way to its compact form."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import networkx as nx
import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.analysis.dependency import dependency_graph
from fxprune.analysis.plan import ChannelGroup, FrozenAxis, Keep, Member, Plan
from fxprune.cost import Cost, CostModel, ExpectedCost
from fxprune.errors import FxpruneError, GateError, InternalError
from fxprune.gates import GateVector
from fxprune.mask_checks import check_masks
from fxprune.optimizer_cut import Optimizers, as_optimizers
from fxprune.origin import Origin
from fxprune.passes.insert_gates import GATES
from fxprune.settings import Settings
from fxprune.shrink import Change, Draft, Shrunk, count_parameters

__all__ = ["GatedModule"]


class GatedModule(nn.Module, abc.ABC):
    """A model with gates on every prunable channel.

    Made by `fxprune.auto_gate`: a `fxprune.gated_graph.GatedGraph`, which is a
    `torch.fx.GraphModule`, where the whole model can be captured, and a
    `fxprune.gated_regions.GatedRegions`, which keeps the model's Python, where only parts of it
    can. It trains, evaluates, prints, moves, pickles and saves like any module; with all gates open
    it computes what the original computes.

    Attributes
    ----------
    plan : Plan
        What the analysis found.
    settings : Settings
        How this module was made; enough to make it again from the original architecture.
    """

    plan: Plan
    settings: Settings
    _cost_model: CostModel
    _origin: Origin | None

    def _describe(self, plan: Plan, settings: Settings, origin: Origin | None = None) -> None:
        """Take over what the analysis found; called by each form."""
        self.plan = plan
        self.settings = settings
        self._cost_model = CostModel(plan)
        self._origin = origin

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
            If a name is no group, a mask is not bool, has the wrong length, or keeps nothing of a
            group that is no branch. Nothing is changed then.
        """
        if not isinstance(keep, Mapping):
            raise GateError(
                "set_keep takes a mapping from group names to bool tensors.",
                seen=f"a {type(keep).__name__}",
                hint="gated.set_keep({gated.groups[0].name: mask})",
            )
        if not keep:
            return
        check_masks(self.plan, keep)
        slices = self.plan.group_slices()
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
        vector = self._vector()
        before = vector.soft
        vector.soft = self._checked_gates(gates)
        try:
            yield
        finally:
            vector.soft = before

    @property
    def was_shrunk(self) -> bool:
        """Whether `shrink_` has removed anything."""
        return self._origin is not None

    @property
    def original_keep(self) -> dict[str, Tensor]:
        """The hard masks now, of the units that the model had before it was ever shrunk.

        These make its compact form again from the original model, which `fxprune.load` does.
        """
        return _by_group(self._whole_plan, self._full(self._keep_vector()))

    @property
    def original_groups(self) -> tuple[ChannelGroup, ...]:
        """The groups that the model had before it was ever shrunk."""
        return self._whole_plan.groups

    @property
    def remaining(self) -> dict[str, Tensor]:
        """Which units of the original model have not been removed by `shrink_`.

        For each of the original groups a bool tensor of its original size. With these,
        `shrink_to_` brings another gated form of the original model to the shape of this one.
        """
        return _by_group(self._whole_plan, self._full(np.ones(self.plan.n_units, dtype=bool)))

    @property
    def sampled_gates(self) -> Tensor | None:
        """Gates in use in training mode in place of the hard masks; None where there are none.

        Shape (n_units,), values in [0, 1]; gradients reach them, and add up until they are
        replaced. They belong to a training run: no copy, pickle or state_dict has them.
        """
        return self._vector().sampled

    @sampled_gates.setter
    def sampled_gates(self, gates: Tensor | None) -> None:
        self._vector().sampled = None if gates is None else self._checked_gates(gates)

    # -- cost
    def cost(self) -> Cost:
        """Return the exact cost of what is kept now, at the shape of the example inputs."""
        return self._cost_model.exact(self._keep_vector())

    def cost_of(self, keep: Keep) -> Cost:
        """Return the exact cost of a keep-vector, bool array of shape (n_units,)."""
        return self._cost_model.exact(keep)

    @property
    def dense_cost(self) -> Cost:
        """The cost of the whole original model, with what has been removed since."""
        model = self._cost_model if self._origin is None else CostModel(self._whole_plan)
        return model.exact(np.ones(self._whole_plan.n_units, dtype=bool))

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
    @abc.abstractmethod
    def compact(self) -> nn.Module:
        """Return the physically small model that computes what this one computes.

        Returns
        -------
        nn.Module
            Plain torch modules, no gates; in the mode this module is in. This module is left as it
            is.
        """

    # -- a smaller one in its place
    def shrink_(self, optimizer: Optimizers = None) -> Shrunk:
        """Remove for good, in place, what the hard masks close; training then simply goes on.

        Parameters, their gradients, buffers, graphs, gates and the optimizer's state get smaller:
        every step that follows computes what it would have with the units masked.

        Parameters
        ----------
        optimizer : torch.optim.Optimizer, or a sequence of them, optional
            What trains this model. Tensors in its state that are shaped like their parameter are
            cut with it (momentum, Adam's moments), or have size 1 on some axes; single numbers are
            left alone.

        Returns
        -------
        Shrunk
            Which units stayed, by the numbers they had. Nothing happens when nothing is closed.

        Raises
        ------
        ConfigError
            If an optimizer is of another model, or has state that cannot be cut. Nothing is
            changed then, neither here nor in any optimizer.
        GateError
            If called inside `soft_gates`.

        Notes
        -----
        `groups`, `keep` and the numbers of units are those of the smaller model afterwards;
        `dense_cost`, `original_keep` and the recipe of its compact form speak of the original.
        Parameters and modules stay the same objects: hooks, schedulers and references remain
        valid. A ``DistributedDataParallel`` around this module has to be made anew. Random layers
        are the one difference: with fewer channels left, dropout draws fewer numbers.
        """
        if self._vector().soft is not None:
            raise GateError(
                "shrink_ was called inside soft_gates.",
                hint="leave the with block first: its gate vector is of the larger model",
            )
        optimizers = as_optimizers(optimizer, self)
        keep, plan, before = self._keep_vector(), self.plan, count_parameters(self)
        units = np.arange(plan.n_units)
        if not keep.all():
            root, graphs = self._shared_root(), self._gated_graphs()
            draft = Draft(root, graphs, self._vector(), plan, keep, self._origin)
            Change(self, draft, plan, keep, optimizers).apply()
            self._take_graphs(draft.graphs)
            self._describe(draft.plan, self.settings, draft.origin)
            units = draft.units
        return Shrunk.of(plan, units, before, count_parameters(self))

    def shrink_to_(self, remaining: Mapping[str, Tensor], optimizer: Optimizers = None) -> Shrunk:
        """Remove, in place, what masks of the original model close.

        So a checkpoint of a model that was shrunk is restored: gate the original model again,
        ``gated.shrink_to_(remaining, optimizer)``, then load the states of both.

        Parameters
        ----------
        remaining : mapping of str to bool Tensor
            By original group, of original size, as `remaining` gives them; groups that are not
            named stay as they are.
        optimizer
            As for `shrink_`.

        Returns
        -------
        Shrunk

        Raises
        ------
        GateError
            As `set_keep` does, and if a unit that is to stay has been removed already. Nothing is
            changed then.
        ConfigError
            As `shrink_` does.
        """
        whole, before = self._whole_plan, self._keep_vector()
        check_masks(whole, remaining)
        slices = whole.group_slices()
        full = self._full(np.ones(self.plan.n_units, dtype=bool))
        for name, mask in remaining.items():
            wanted = mask.cpu().numpy()
            if (wanted & ~full[slices[name]]).any():
                raise GateError(
                    f"Units of group {name!r} that are to stay have been removed already.",
                    seen=f"{int(full[slices[name]].sum())} of {len(wanted)} are left",
                    hint="start from a model that is still whole",
                )
            full[slices[name]] &= wanted
        units = slice(None) if self._origin is None else self._origin.units
        self._vector().set_hard(torch.from_numpy(full[units]))
        try:
            return self.shrink_(optimizer)
        except FxpruneError:
            self._vector().set_hard(torch.from_numpy(before))
            raise

    @property
    def _whole_plan(self) -> Plan:
        """The plan of the model before it was ever shrunk."""
        return self.plan if self._origin is None else self._origin.plan

    def _full(self, keep: Keep) -> Keep:
        """Return a keep-vector of the original model from one of this."""
        return keep if self._origin is None else self._origin.full(keep)

    def _captured(self, key: str) -> fx.Graph:
        """Return a copy of a graph with the sizes it was captured with."""
        if self._origin is not None:
            return self._origin.graph(key)
        return copy.deepcopy(self._gated_graphs()[key])

    @abc.abstractmethod
    def _gated_graphs(self) -> Mapping[str, fx.Graph]:
        """Return the graphs in use."""

    @abc.abstractmethod
    def _shared_root(self) -> nn.Module:
        """Return a copy of the modules that shares their tensors."""

    @abc.abstractmethod
    def _take_graphs(self, graphs: Mapping[str, fx.Graph]) -> None:
        """Run these graphs from now on."""

    def _checked_gates(self, gates: Tensor) -> Tensor:
        if not isinstance(gates, Tensor) or tuple(gates.shape) != (self.plan.n_units,):
            raise GateError(
                f"The gate vector must have shape ({self.plan.n_units},): one per unit.",
                seen=str(tuple(gates.shape)) if isinstance(gates, Tensor) else type(gates).__name__,
            )
        return gates

    def _vector(self) -> GateVector:
        vector = self.get_submodule(GATES)
        if not isinstance(vector, GateVector):
            raise InternalError(f"{GATES} is no gate vector", seen=type(vector).__name__)
        return vector

    def _keep_vector(self) -> Keep:
        keep: Keep = (self._vector().value[:-1] > 0.5).cpu().numpy()
        return keep


def _by_group(plan: Plan, keep: Keep) -> dict[str, Tensor]:
    return {name: torch.from_numpy(keep[at]) for name, at in plan.group_slices().items()}
