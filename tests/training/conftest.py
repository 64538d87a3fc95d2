"""One whole run, which several tests look at."""

from __future__ import annotations

import pytest
import torch
from training.runs import SETTINGS, data, deterministic, net

from fxprune.training import TrainingResult, train


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """A run of a tiny net, and a check that it left torch's random state alone."""
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with deterministic():
        result = train(net(), data(), SETTINGS, tmp_path_factory.mktemp("runs") / "new" / "whole")
    assert torch.equal(torch.get_rng_state(), state)
    return result
