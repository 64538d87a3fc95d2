"""The controller network: from nothing to one logit per unit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ControllerNetwork"]

_TOKEN = 64
_HIDDEN = 128


class ControllerNetwork(nn.Module):
    """A bidirectional GRU over one token per group, with a linear head for each.

    The tokens are fixed and orthogonal as far as 64 dimensions allow. Groups are read in execution
    order, so a group's logits know of the layers around it.

    Parameters
    ----------
    sizes : sequence of int
        Number of units of each group; any number of groups, of any kind.
    seed : int
        For weights and tokens; torch's global random state is not touched.

    References
    ----------
    .. [1] Wu et al., "Auto-Train-Once", CVPR 2024, section 3.2 and supplement (architecture of the
    controller network).
    """

    tokens: Tensor

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        super().__init__()
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of this device, not of accelerators too
            tokens = nn.init.orthogonal_(torch.empty(len(sizes), _TOKEN))
            self.register_buffer("tokens", tokens)
            self.gru = nn.GRU(_TOKEN, _HIDDEN, bidirectional=True)
            self.norm = nn.LayerNorm(2 * _HIDDEN)
            self.heads = nn.ModuleList(nn.Linear(2 * _HIDDEN, n, bias=False) for n in sizes)

    def forward(self) -> Tensor:
        """Return the logits of all units, shape (n_units,), group after group."""
        # A user may hold autocast open around the whole step: it is meant for the model.
        with torch.autocast(self.tokens.device.type, enabled=False):
            features, _ = self.gru(self.tokens)
            features = F.relu(self.norm(features))
            return torch.cat([head(f) for head, f in zip(self.heads, features, strict=True)])
