"""What every test gets: one thread, a fixed seed, and slow tests only on request."""

from __future__ import annotations

import hypothesis
import pytest
import torch

# Several test processes share the machine: more threads each would spin against one another.
torch.set_num_threads(1)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("fxprune", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fxprune")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--update-golden", action="store_true", help="write the files in tests/golden anew"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--runslow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --runslow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
