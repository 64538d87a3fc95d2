"""Every operator that has a rule keeps the promise, on a network that runs that operator."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from gate_checks import (
    assert_close,
    assert_cost,
    assert_equal_to_compact,
    assert_partition,
    random_keep,
    run,
)
from op_samples import NO_ROW, POINTWISE, SAMPLES
from sample_nets import Sample, SampleNet
from spelling_samples import SPELLINGS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune._compat import is_pointwise
from fxprune.analysis.whole import WholeOperators
from fxprune.api import auto_gate
from fxprune.rules import registry

NAMED = {
    **{f"{i}-{s.keys.replace(' ', '+') or 'module'}": s for i, s in enumerate(SAMPLES)},
    **{f"pointwise-{name}": s for name, s in POINTWISE.items()},
}


class Executed(TorchDispatchMode):
    """Notes the operators that run, in-place ones under both names."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition(".")[0]
        self.names |= {name, name.removesuffix("_")}
        return func(*args, **(kwargs or {}))


def executed(net: SampleNet, x: Tensor) -> set[str]:
    """Return the operators a network runs on the CPU, and, where it can, on meta tensors as the analysis does."""

    def whole(name: str, args: Any, kwargs: Any, shapes: Any) -> Any:
        log.names.add(name)
        return getattr(torch, name.removeprefix("aten::"))(*args, **kwargs)

    with torch.no_grad(), Executed() as log, WholeOperators(whole):
        copy.deepcopy(net)(x)
        with contextlib.suppress(
            RuntimeError, NotImplementedError
        ):  # a constant it makes is on the CPU
            copy.deepcopy(net).to("meta")(x.to("meta"))
    return log.names


def check(sample: Sample) -> Any:
    """Check the promise on a row and return its gated model."""
    net, x = sample.build()
    gated = auto_gate(net, x)
    assert_partition(gated)
    assert_close(
        run(copy.deepcopy(gated), x), run(copy.deepcopy(net), x), "open gates against the original"
    )
    state = copy.deepcopy(gated.state_dict())
    for seed, share in enumerate((0.2, 0.5, 0.85)):
        gated.load_state_dict(state)
        gated.set_keep(random_keep(gated, share, seed))
        compact = assert_equal_to_compact(gated, x)
        if sample.counted:
            assert_cost(gated, compact, x)
    return gated


@pytest.mark.parametrize("name", NAMED)
def test_row(name: str) -> None:
    sample = NAMED[name]
    gated = check(sample)
    prunable = any(str(m) == "make.weight[0]" for group in gated.groups for m in group.members)
    reasons = [f.reason for f in gated.frozen if str(f.member) == "make.weight[0]"]
    assert prunable is sample.prunable, reasons
    assert sample.prunable or any(sample.reason in reason for reason in reasons), reasons


@pytest.mark.parametrize("name", [name for name, sample in NAMED.items() if sample.keys])
def test_a_row_runs_the_operators_it_is_there_for(name: str) -> None:
    sample = NAMED[name]
    assert sample.ops <= executed(*sample.build())
    assert sample.ops <= set(registry)


@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_operators_need_no_rule(name: str) -> None:
    ran = executed(*POINTWISE[name].build()) - set(registry)
    assert any(is_pointwise(op) for op in ran)


def rows_for(keys: Iterable[str]) -> dict[str, int]:
    return {key: sum(key in sample.ops for sample in SAMPLES) for key in keys}


def test_every_rule_has_a_row() -> None:
    missing = [key for key, count in rows_for(registry).items() if not count and key not in NO_ROW]
    assert missing == [], "add a row to tests/op_samples.py"


def test_what_is_excused_has_a_rule_and_no_row() -> None:
    assert set(NO_ROW) <= set(registry)
    assert [key for key, count in rows_for(NO_ROW).items() if count] == []
    assert all(NO_ROW.values())


@pytest.mark.parametrize("key", [key for key, why in NO_ROW.items() if why.startswith("composite")])
def test_what_is_excused_as_composite_is(key: str) -> None:
    packet = getattr(torch.ops.aten, key.removeprefix("aten::"))
    overload = getattr(packet, packet.overloads()[0])
    assert overload.has_kernel_for_dispatch_key("CompositeImplicitAutograd")


def test_nothing_that_is_excused_runs_in_any_row() -> None:
    samples = itertools.chain(SAMPLES, POINTWISE.values())
    ran = set().union(*(executed(*sample.build()) for sample in samples))
    assert ran & set(NO_ROW) == set()


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling(name: str) -> None:
    """Another way to write a known operator: pruned or frozen, but never wrong."""
    check(SPELLINGS[name])


def test_rows_are_small() -> None:
    assert len(inspect.getsource(SampleNet.forward).splitlines()) == 2
    for sample in SAMPLES:
        net, _ = sample.build()
        assert sum(p.numel() for p in net.parameters()) < 5000
