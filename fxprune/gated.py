"""What every gated model is: a module with a plan, a gate vector, and a way to its compact form."""

from __future__ import annotations

import abc
import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from fxprune.analysis.dependency import dependency_graph
from fxprune.analysis.plan import ChannelGroup, FrozenAxis, Keep, Member, Plan
from fxprune.cost import Cost, CostModel, ExpectedCost
from fxprune.errors import GateError, InternalError
from fxprune.gates import GateVector
from fxprune.passes.insert_gates import GATES
from fxprune.settings import Settings

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

    def _describe(self, plan: Plan, settings: Settings) -> None:
        """Take over what the analysis found; called once by each form."""
        self.plan = plan
        self.settings = settings
        self._cost_model = CostModel(plan)

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
    @abc.abstractmethod
    def compact(self) -> nn.Module:
        """Return the physically small model that computes what this one computes.

        Returns
        -------
        nn.Module
            Plain torch modules, no gates; in the mode this module is in. This module is left as it
            is.
        """

    def _vector(self) -> GateVector:
        vector = self.get_submodule(GATES)
        if not isinstance(vector, GateVector):
            raise InternalError(f"{GATES} is no gate vector", seen=type(vector).__name__)
        return vector

    def _keep_vector(self) -> Keep:
        keep: Keep = (self._vector().value[:-1] > 0.5).cpu().numpy()
        return keep


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
