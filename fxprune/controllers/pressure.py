"""How strongly closed units are pressed towards zero, and when that may stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxprune.analysis.plan import Keep
from fxprune.controllers.checks import check_positive
from fxprune.controllers.producers import ClosedRows, Producers
from fxprune.controllers.projection import PROJECTIONS
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule

__all__ = ["FINAL_STRENGTH", "STRENGTH", "Pressure"]

STRENGTH = 10.0
FINAL_STRENGTH = 1000.0
_FEW_STEPS = 20
_ROUNDING = 1.001
_FINAL_EVERY = 20  # once momentum has died down, hard gates keep closed units where they are


class Pressure:
    """Applies a projection to closed units with the strength of their groups.

    A group's strength is ``lambda_g = lambda * (closed units in it) / (closed units in all)``.

    Parameters
    ----------
    gated : GatedModule
    optimizer : torch.optim.Optimizer
        Its learning rates are read at every step.
    kind : str
        A key of `PROJECTIONS`.
    strength : float, optional
        lambda before masks are fixed; by default `STRENGTH`, or more in groups whose closed units
        would not reach zero in the steps there are.
    """

    def __init__(
        self,
        gated: GatedModule,
        optimizer: torch.optim.Optimizer,
        kind: str,
        strength: float | None,
    ) -> None:
        if not isinstance(kind, str) or kind not in PROJECTIONS:
            raise ConfigError(
                f"The 'projection' parameter must be one of {sorted(PROJECTIONS)}. "
                f"Got {kind!r} instead."
            )
        if strength is not None:
            check_positive("strength", strength)
        self._producers = Producers(gated)
        self._projection = PROJECTIONS[kind](self._producers)
        self._optimizer = optimizer
        self._strength = strength
        self._slices = list(gated.plan.group_slices().values())
        sizes = torch.tensor([group.size for group in gated.groups])
        self._group_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self._rows: list[ClosedRows] = []
        self._shares = torch.zeros(gated.plan.n_units)
        self._closed = np.zeros(gated.plan.n_units, dtype=bool)
        self._final_calls = 0

    def close(self, closed: Keep) -> None:
        """Press on these units from now on.

        Parameters
        ----------
        closed : bool array, shape (n_units,)
        """
        if self._rows and np.array_equal(closed, self._closed):
            return
        self._closed = closed.copy()
        self._rows = self._producers.rows(closed)
        shares = np.zeros(len(closed), dtype=np.float32)
        for at in self._slices:
            shares[at] = closed[at].sum() / max(1, closed.sum())
        self._shares = torch.from_numpy(shares)
        self._projection.begin(self._rows)

    @property
    def closed(self) -> Keep:
        """Which units are pressed on, bool array of shape (n_units,)."""
        return self._closed

    def norms(self) -> Tensor:
        """Return the norm of each closed unit's weights, shape (n_units,); 0 for open ones."""
        return self._producers.norms(self._rows)

    def apply(self, *, final: bool, steps_left: int) -> None:
        """Project once, after an optimizer step.

        Parameters
        ----------
        final : bool
            Whether masks are fixed.
        steps_left : int
            How many times this will be called before they are, this one counted; without meaning
            when `final`.
        """
        if not self._rows:
            return
        if final:
            self._final_calls += 1
            if self._final_calls > _FEW_STEPS and self._final_calls % _FINAL_EVERY:
                return
        rates = self._rates()
        strength = self._strengths(final, steps_left, max(rates))
        self._projection.apply(self._rows, rates, strength.to(self._rows[0].parameter.device))

    def _strengths(self, final: bool, steps_left: int, rate: float) -> Tensor:
        """Return ``lambda_g`` of each unit's group, shape (n_units,)."""
        if not final and self._strength is not None:
            return self._strength * self._shares
        strength = (FINAL_STRENGTH if final else STRENGTH) * self._shares
        # A group of few units has a small share, but cutting them at once harms no less: the last
        # closed unit of every group must have vanished when masks are fixed, or calls become rare.
        left = _FEW_STEPS + 1 - self._final_calls if final else steps_left
        norms = self.norms().cpu()
        last = torch.zeros(len(self._slices)).scatter_reduce(0, self._group_of, norms, "amax")
        needed = last * _over(_ROUNDING, rate * max(1, left))
        return torch.maximum(strength, needed[self._group_of])

    def _rates(self) -> list[float]:
        """Return the present learning rate of each closed row's parameter; 0 if it has none."""
        rates = {
            id(parameter): float(group["lr"])
            for group in self._optimizer.param_groups
            for parameter in group["params"]
        }
        return [rates.get(id(one.parameter), 0.0) for one in self._rows]

    def settings(self) -> list[Any]:
        """Return what two runs must share to be one."""
        return [type(self._projection).__name__, self._strength]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "closed": torch.from_numpy(self._closed.copy()),
            "final_calls": self._final_calls,
            "projection": self._projection.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._rows = []  # whatever is closed now, `close` has to look at it anew
        self.close(state["closed"].numpy())
        self._final_calls = int(state["final_calls"])
        self._projection.load_state(state["projection"])


def _over(a: float, b: float) -> float:
    return a / b if b else 0.0
