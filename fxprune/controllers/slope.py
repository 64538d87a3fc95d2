"""How the task loss changes with the gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxprune.controllers.checks import check_loss, check_slope
from fxprune.controllers.distributed import average_over_ranks
from fxprune.controllers.statistics import unchanged_buffers
from fxprune.gated import GatedModule

__all__ = ["task_slope"]


def task_slope(gated: GatedModule, gates: Tensor, loss: Callable[[], Tensor]) -> Tensor:
    """Return the gradient of a loss by soft gates, the same on all ranks.

    Parameters
    ----------
    gated : GatedModule
        Running statistics that the loss changes are put back.
    gates : Tensor, shape (n_units,)
        On the model's device.
    loss : callable
        Returns the loss of `gated`, a tensor without axes.

    Returns
    -------
    Tensor, shape (n_units,)

    Raises
    ------
    ConfigError
        If the loss is no scalar tensor, or does not depend on the gates.
    """
    gates = gates.detach().requires_grad_()
    with unchanged_buffers(gated), gated.soft_gates(gates), torch.enable_grad():
        value = check_loss(loss())
        (slope,) = torch.autograd.grad(value, gates, allow_unused=True)
    return average_over_ranks(check_slope(slope))
