"""The producer side of units: the weights that make a unit's channels, as rows to shrink."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.ids import Ids
from fxprune.analysis.plan import Keep
from fxprune.gated import GatedModule

__all__ = ["ClosedRows", "Producers"]


@dataclass(frozen=True, slots=True, eq=False)
class ClosedRows:
    """The positions of one parameter axis that make closed units.

    Attributes
    ----------
    parameter : Tensor
    dim : int
    rows : int64 Tensor, shape (m,)
        Positions along `dim`.
    units : int64 Tensor, shape (m,)
        The closed unit that each of them makes.
    """

    parameter: Tensor
    dim: int
    rows: Tensor
    units: Tensor

    def take(self) -> Tensor:
        """Return these positions of the parameter, a copy."""
        return self.parameter.detach().index_select(self.dim, self.rows)

    def put(self, values: Tensor) -> None:
        """Write these positions of the parameter."""
        with torch.no_grad():
            self.parameter.index_copy_(self.dim, self.rows, values)

    def along(self, per_row: Tensor) -> Tensor:
        """Shape one number per row so that it broadcasts over what `take` returns."""
        shape = [1] * self.parameter.dim()
        shape[self.dim] = len(self.rows)
        return per_row.reshape(shape).to(self.parameter.dtype)

    def sum_others(self, values: Tensor) -> Tensor:
        """Sum what `take` returns over all other axes, shape (m,)."""
        others = [d for d in range(values.dim()) if d != self.dim]
        return values.sum(others) if others else values


class Producers:
    """Which parameter entries make each unit of a gated model.

    That is the rows of the weight that makes the unit, their bias, the affine pair of its norm, and
    the same of every depthwise convolution it passes through; not the weights that read it.

    Parameters
    ----------
    gated : GatedModule
    """

    def __init__(self, gated: GatedModule) -> None:
        plan = gated.plan
        self.n_units = plan.n_units
        parameters = dict(gated.named_parameters(remove_duplicate=False))
        self._axes: list[tuple[Tensor, int, Ids]] = []
        for (name, dim), ids in plan.axes.items():
            makes = (name, dim) not in plan.readers and plan.prunable(ids)
            if name in parameters and makes:
                self._axes.append((parameters[name], dim, plan.units[ids]))

    def rows(self, closed: Keep) -> list[ClosedRows]:
        """Return the positions that make closed units.

        Parameters
        ----------
        closed : bool array, shape (n_units,)
        """
        full = np.append(closed, False)
        found = []
        for parameter, dim, units in self._axes:
            hit = full[units]  # (positions, k): a position may need several units
            rows = np.flatnonzero(hit.any(axis=1))
            if len(rows):
                owners = units[rows, hit[rows].argmax(axis=1)]
                device = parameter.device
                found.append(
                    ClosedRows(
                        parameter,
                        dim,
                        torch.from_numpy(rows).to(device),
                        torch.from_numpy(owners).to(device),
                    )
                )
        return found

    def norms(self, rows: list[ClosedRows]) -> Tensor:
        """Return the norm of each closed unit's weights, shape (n_units,); 0 for open ones."""
        return self.norms_of(rows, [one.take() for one in rows])

    def norms_of(self, rows: list[ClosedRows], values: list[Tensor]) -> Tensor:
        """Do the same with values already taken."""
        device = rows[0].parameter.device if rows else None
        total = torch.zeros(self.n_units, device=device)
        for one, value in zip(rows, values, strict=True):
            squares = one.sum_others(value.float().square())
            total.index_add_(0, one.units, squares)
        return total.sqrt()
