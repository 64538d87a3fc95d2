"""Weight steps that measure and do not learn.

What a structure is worth shows where its gate is not open (`fxprune.controllers.slopes`), but
weights that are trained with such gates learn to do without what is going to stay: mobilenet_v2
(glyphs, 480 steps, one seed) at a price of next to nothing ended at 68.0 % with a tenth of the
gates half open until masks were fixed, at 73.5 % with probes, and at 76.8 % without exploring and
so without removing anything. So gates explore in a few steps only, many at a time, and those steps
leave weights and optimizer as they were: gradients are dropped before the optimizer sees them.
"""

from __future__ import annotations

from typing import Any

import torch

from fxprune.gated import GatedModule

__all__ = ["Probes"]


class Probes:
    """Keeps an optimizer from stepping while a model's gates are those of a probe.

    Parameters
    ----------
    gated : GatedModule
    optimizer : torch.optim.Optimizer
        Its steps do nothing then: a parameter without a gradient is left out by every optimizer of
        torch, with its momentum and its weight decay. One that computes gradients itself, in a
        closure, steps all the same.
    """

    def __init__(self, gated: GatedModule, optimizer: torch.optim.Optimizer) -> None:
        self._gated = gated
        self._gates: torch.Tensor | None = None
        optimizer.register_step_pre_hook(self._drop_gradients)

    def hold(self, probing: bool) -> None:
        """Say whether the gates that the model has now are those of a probe."""
        self._gates = self._gated.sampled_gates if probing else None

    def _drop_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # By identity: a controller that was left behind must not hold back one that came after it.
        if self._gates is None or self._gates is not self._gated.sampled_gates:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
