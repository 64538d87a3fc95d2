"""The complexity term: what a network that draws its structures is expected to cost.

::

    C(theta) = alpha * MACs(theta) / MACs(dense) + (1 - alpha) * params(theta) / params(dense)

Both are the exact expected values, linear in every theta. The price of a structure is its part of
the slope, ``weight * dC / d theta``, with

    weight = min(1, 2 (1 - beta)) for a unit,    min(1, 2 beta) for a branch:

at ``beta = 0.5`` both pay what they cost. To either side one kind pays less than that and so stays
longer, down to nothing at the end: it is then not drawn at all and keeps its theta of 1. The other
kind's price does not change, so that runs of one nu and several betas can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.analysis.plan import ChannelGroup
from fxprune.cost import Cost
from fxprune.gated import GatedModule

__all__ = ["Complexity", "Prices"]


@dataclass(frozen=True, slots=True)
class Prices:
    """What the structures cost at some thetas.

    Attributes
    ----------
    macs, params : float
        Expected shares of the dense network's.
    macs_slopes, params_slopes : float64 Tensor, shape (n_units,)
        Derivatives of these by theta.
    """

    macs: float
    params: float
    macs_slopes: Tensor
    params_slopes: Tensor

    def of(self, resource: str) -> tuple[float, Tensor]:
        """Return the expected share of one resource and its slopes."""
        if resource == "macs":
            return self.macs, self.macs_slopes
        return self.params, self.params_slopes


class Complexity:
    """The complexity term of a gated model.

    Parameters
    ----------
    gated : GatedModule
        May get smaller: prices are those of what is left, shares those of the original.
    alpha, beta : float in [0, 1]
    """

    def __init__(self, gated: GatedModule, alpha: float, beta: float) -> None:
        self._gated = gated
        self.alpha, self.beta = alpha, beta
        self._weights = {"unit": min(1.0, 2 * (1 - beta)), "branch": min(1.0, 2 * beta)}
        self.dense: Cost = gated.dense_cost

    def weight_of(self, group: ChannelGroup) -> float:
        """Return how much of its cost a unit of a group pays."""
        return self._weights["branch" if group.kind == "branch" else "unit"]

    def weights(self) -> Tensor:
        """Return that of every unit, float64, shape (n_units,)."""
        groups = self._gated.groups
        sizes = torch.tensor([group.size for group in groups])
        each = torch.tensor([self.weight_of(group) for group in groups], dtype=torch.float64)
        return each.repeat_interleave(sizes)

    def at(self, theta: Tensor) -> Prices:
        """Return shares and slopes at a theta, float64, shape (n_units,)."""
        leaf = theta.detach().clone().requires_grad_()
        with torch.enable_grad():
            cost = self._gated.expected_cost(leaf)
            found = []
            for total, dense in ((cost.macs, self.dense.macs), (cost.params, self.dense.params)):
                (slopes,) = torch.autograd.grad(total / dense, leaf, retain_graph=True)
                found.append((float(total.detach()) / dense, slopes))
        (macs, by_macs), (params, by_params) = found
        return Prices(macs, params, by_macs, by_params)

    def mixed(self, prices: Prices) -> Tensor:
        """Return the slopes of the complexity term itself, weighted by beta."""
        slopes = self.alpha * prices.macs_slopes + (1 - self.alpha) * prices.params_slopes
        return self.weights() * slopes
