"""What every run of Auto-Train-Once must have reached at its end."""

from __future__ import annotations

import numpy as np
from controllers.loops import (
    BATCH,
    Loop,
    batch,
)
from gate_checks import assert_cost, assert_state_is_sliced, keep_vector
from torch import nn

import fxprune
from fxprune.modes import split_modes


def check_result(loop: Loop) -> nn.Module:
    """Check what every run that ended must hold; return the compact model."""
    chosen = loop.ato.finish()
    assert chosen.met, chosen
    assert abs(chosen.reached - chosen.target) <= 0.01 * chosen.target
    ones = np.ones(loop.gated.plan.n_units, dtype=bool)
    now, dense = (
        getattr(c, chosen.resource) for c in (loop.gated.cost(), loop.gated.cost_of(ones))
    )
    assert now / dense == chosen.reached == loop.ato.expected
    assert np.array_equal(keep_vector(loop.gated), chosen.keep)
    loop.gated.eval()
    compact = loop.gated.compact()
    x = loop.input(batch(0)[0])
    assert fxprune.verify(loop.gated, compact, x).passed
    for part in (split_modes(compact) or {"": compact}).values():
        assert_state_is_sliced(loop.gated, part)
    assert_cost(loop.gated, compact, x[:1].expand(BATCH, -1, -1, -1))
    return compact
