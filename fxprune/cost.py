"""What a keep-mask costs in multiply-accumulates and parameters.

Exact for hard masks, differentiable for soft ones.

Every operator's multiply-accumulates, and every parameter's size, are a constant times the product
of the kept counts of a few axes, so the whole model's cost is a polynomial in these counts::

    cost(g) = sum over terms t of  c_t * product over axes a in t of  n_a(g)
    n_a(g)  = sum over positions p of a of  product over units u of p  g_u

For g in {0, 1} that is the exact cost of the compact model; for g in [0, 1], independent Bernoulli
units give it as the expectation wherever no unit occurs twice in a term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.analysis.ids import Ids
from fxprune.analysis.plan import CostTerms, Keep, Plan

__all__ = ["Cost", "CostModel", "ExpectedCost"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Exact cost of a model.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of convolutions and matrix products in one forward at the shape of the
        example inputs (batch included).
    params : int
        Number of parameters.
    """

    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class ExpectedCost:
    """Differentiable cost of soft gates; both are float64 tensors with no axes."""

    macs: Tensor
    params: Tensor


class CostModel:
    """Evaluates a plan's cost polynomials.

    Parameters
    ----------
    plan : Plan
    """

    def __init__(self, plan: Plan) -> None:
        self._n_units = plan.n_units
        self._macs = plan.macs
        self._params = plan.params
        rows, runs, times = _positions(plan)
        self._rows: Ids = rows
        self._runs: Ids = runs
        self._times: npt.NDArray[np.int64] = times
        self._n_runs = len(plan.runs)

    def exact(self, keep: Keep) -> Cost:
        """Return the cost of a keep-vector, bool array of shape (n_units,)."""
        alive = np.append(keep, True)[self._rows].all(axis=-1)
        counts = np.bincount(self._runs, weights=self._times * alive, minlength=self._n_runs)
        whole = [round(c) for c in counts.tolist()]
        return Cost(_exact(self._macs, whole), _exact(self._params, whole))

    def expected(self, gates: Tensor) -> ExpectedCost:
        """Return the cost of soft gates, shape (n_units,), values in [0, 1].

        Gradients reach them.
        """
        full = torch.cat([gates.double(), gates.new_ones(1, dtype=torch.float64)])
        device = gates.device
        alive = full[torch.from_numpy(self._rows).to(device)].prod(-1)
        weighted = alive * torch.from_numpy(self._times).to(device)
        counts = torch.zeros(self._n_runs, dtype=torch.float64, device=device)
        counts = counts.index_add(0, torch.from_numpy(self._runs).to(device), weighted)
        return ExpectedCost(_soft(self._macs, counts), _soft(self._params, counts))


def _positions(plan: Plan) -> tuple[Ids, Ids, npt.NDArray[np.int64]]:
    """Return distinct (run, units) positions with how often each occurs.

    Shapes: rows (m, k), runs (m,), times (m,).
    """
    columns = plan.units.shape[1] + 1
    parts = [np.zeros((0, columns), dtype=np.int64)]
    for number, ids in enumerate(plan.runs):
        units = plan.units[ids]
        parts.append(np.concatenate([np.full((len(ids), 1), number), units], axis=1))
    table = np.concatenate(parts)
    distinct, times = np.unique(table, axis=0, return_counts=True)
    return distinct[:, 1:], distinct[:, 0], times


def _exact(terms: CostTerms, counts: Sequence[int]) -> int:
    total = 0
    for factor, runs in zip(terms.factors, terms.runs, strict=True):
        value = factor
        for run in runs:
            value *= counts[run]
        total += value
    return total


def _soft(terms: CostTerms, counts: Tensor) -> Tensor:
    """Evaluate all terms at once, by the number of their factors."""
    total = counts.new_zeros(())
    by_degree: dict[int, list[int]] = {}
    for number, runs in enumerate(terms.runs):
        by_degree.setdefault(len(runs), []).append(number)
    for degree, numbers in by_degree.items():
        factors = counts.new_tensor([terms.factors[n] for n in numbers])
        for place in range(degree):
            factors = factors * counts[[terms.runs[n][place] for n in numbers]]
        total = total + factors.sum()
    return total
