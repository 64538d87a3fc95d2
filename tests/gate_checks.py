"""What must hold for every gated model, as checks that several test modules share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune.gated import GatedModule
from fxprune.rules.conv import KERNEL

TOLERANCE = 1e-9  # relative to the largest magnitude of a tensor; everything is float64

__all__ = [
    "TOLERANCE",
    "assert_close",
    "assert_cost",
    "assert_equal_to_compact",
    "assert_partition",
    "assert_state_is_sliced",
    "flat",
    "keep_vector",
    "kept_by_name",
    "no_dropout",
    "random_keep",
    "run",
]


def flat(value: Any) -> list[Tensor]:
    """List the tensors in a model's output, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [t for item in value or () for t in flat(item)] if isinstance(value, list | tuple) else []
    )


def run(model: nn.Module, *inputs: Any, seed: int = 0) -> list[Tensor]:
    """Return what a model computes, without gradients and with random numbers of its own."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return flat(model(*inputs))


def assert_close(actual: list[Tensor], expected: list[Tensor], what: str = "") -> None:
    """Compare tensors relative to the largest magnitude of each."""
    assert [t.shape for t in actual] == [t.shape for t in expected], what
    for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
        scale = b.abs().max().item() if b.numel() else 0.0
        torch.testing.assert_close(
            a,
            b,
            rtol=0,
            atol=TOLERANCE * max(scale, 1e-30),
            msg=lambda m, n=number: f"{what}[{n}]: {m}",
        )


def random_keep(gated: GatedModule, share: float, seed: int = 0) -> dict[str, Tensor]:
    """Draw masks that keep each unit with a probability; only a branch may lose all it has."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in gated.groups:
        mask = torch.rand(group.size, generator=generator) < share
        mask[torch.randint(group.size, (1,), generator=generator)] |= group.kind != "branch"
        masks[group.name] = mask
    return masks


def no_dropout(model: nn.Module) -> None:
    """Switch off everything that would make two runs of a training forward differ."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def keep_vector(gated: GatedModule) -> np.ndarray:
    """Return the hard masks as one bool array over all units."""
    if not gated.groups:
        return np.zeros(0, dtype=bool)
    return torch.cat([gated.keep[group.name] for group in gated.groups]).cpu().numpy()


def kept_by_name(gated: GatedModule) -> dict[str, Tensor]:
    """Return every tensor of the state with the removed positions cut out, by name."""
    keep = keep_vector(gated)
    small = {}
    first: dict[int, str] = {}  # a tied tensor is in the plan under one of its names
    for name, tensor in gated.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), name)
        for dim in range(tensor.dim()):
            ids = gated.plan.axes.get((known, dim))
            if ids is not None:
                at = torch.from_numpy(np.flatnonzero(gated.plan.kept(ids, keep)))
                tensor = tensor.index_select(dim, at)
        small[name] = tensor
    return small


def assert_state_is_sliced(gated: GatedModule, compact: nn.Module) -> None:
    """Compare every parameter and buffer of the compact model with the kept part of the gated one's."""
    small = kept_by_name(gated)
    for name, tensor in compact.state_dict().items():
        assert tensor.shape == small[name].shape, name
        if tensor.is_floating_point():
            assert_close([tensor], [small[name]], name)


def assert_equal_to_compact(gated: GatedModule, *inputs: Any) -> nn.Module:
    """Check that the compact model computes what the gated one computes, and return it."""
    compact = gated.compact()
    assert not any(type(m).__module__.startswith("fxprune") for m in compact.modules())
    assert_close(run(compact, *inputs), run(gated, *inputs), "compact against gated")
    assert_state_is_sliced(gated, compact)
    return compact


def assert_cost(gated: GatedModule, compact: nn.Module, *inputs: Any) -> None:
    """Check the predicted cost against the parameters there are and the operations that run."""
    cost = gated.cost()
    assert cost.params == sum(p.numel() for p in compact.parameters()), "params"
    counter = FlopCounterMode(display=False)
    with counter:
        run(compact, *inputs)
    flops = counter.get_total_flops()
    assert flops % 2 == 0
    assert cost.macs == flops // 2, "macs"


def assert_partition(gated: GatedModule) -> None:
    """Check that the groups partition the units, and the units and frozen positions every axis."""
    plan = gated.plan
    slices = plan.group_slices()
    assert len(slices) == len(gated.groups), "two groups have one name"
    covered = sorted(i for at in slices.values() for i in range(at.start, at.stop))
    assert covered == list(range(plan.n_units))
    found: Counter[str] = Counter()
    parameters = dict(gated.named_parameters(remove_duplicate=False))
    axes_of_unit: dict[int, set[tuple[str, int]]] = {i: set() for i in range(plan.n_units)}
    fixed: dict[tuple[str, int], int] = {}
    for (name, dim), ids in plan.axes.items():
        assert len(ids) == plan.shapes[name][dim]
        rows = plan.units[ids]
        assert ((rows >= 0) & (rows <= plan.n_units)).all()
        for row in rows.tolist():
            needs = {u for u in row if u != plan.n_units}
            assert len(needs) == sum(u != plan.n_units for u in row), "a unit is needed twice"
            for unit in needs:
                axes_of_unit[unit].add((name, dim))
        if name in parameters:
            fixed[name, dim] = int((rows == plan.n_units).all(axis=1).sum())
        found[name] += 1
    for group in gated.groups:
        if group.kind == "branch":
            assert group.size == 1
            assert group.members
            continue
        members = {(m.fqn, m.dim) for m in group.members}
        assert members, group
        assert len(members) == len(group.members), "a member is listed twice"
        for unit in range(slices[group.name].start, slices[group.name].stop):
            axes = axes_of_unit[unit]
            inside = {axis for axis in axes if axis[0] in parameters} or axes
            assert inside == members, f"unit {unit} of {group}"
    reported = {(f.member.fqn, f.member.dim): f for f in gated.frozen if f.reason != KERNEL}
    for axis, count in fixed.items():
        if axis in reported:
            assert reported[axis].count == count
            assert reported[axis].reason
    kernels = {a for a in fixed if a[1] >= 2}
    silent = {a for a, count in fixed.items() if count and a not in reported}
    assert silent <= kernels, f"frozen without a reason: {silent - kernels}"
