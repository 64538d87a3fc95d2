"""Models of timm's families: captured, as prunable as promised, and compact equals gated."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
from gate_checks import assert_close, assert_cost, random_keep, run
from model_zoo import prunable_share
from timm_zoo import FAMILIES, build

from fxprune import auto_gate

pytest.importorskip("timm")

FAMILY = [pytest.param(n, marks=[pytest.mark.slow] * entry.slow) for n, entry in FAMILIES.items()]


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    """Free a test's models before the next one: graphs are cycles."""
    yield
    gc.collect()


@pytest.mark.parametrize("name", FAMILY)
def test_family(name: str) -> None:
    model, x = build(name)
    gated = auto_gate(model, x)
    reasons = Counter(axis.reason for axis in gated.frozen)
    assert prunable_share(model, gated) >= FAMILIES[name].share, reasons
    assert_close(run(gated, x), run(model, x), "open gates")
    for seed, share in enumerate((0.5, 0.8)):
        gated.set_keep(random_keep(gated, share, seed))
        compact = gated.compact()
        assert_close(run(compact, x), run(gated, x), "compact")
    assert_cost(gated, compact, x)
