"""What must hold for every mask of a model's branches."""

from __future__ import annotations

import copy
import itertools

import torch
from gate_checks import (
    assert_close,
    assert_cost,
    assert_equal_to_compact,
    assert_partition,
    random_keep,
    run,
)
from small_nets import image
from torch import Tensor, nn

from fxprune.analysis.plan import ChannelGroup
from fxprune.api import auto_gate
from fxprune.gated import GatedModule


def gate(model: nn.Module, x: Tensor | None = None) -> GatedModule:
    return auto_gate(model, image() if x is None else x, branches=True)


def branches(gated: GatedModule) -> list[ChannelGroup]:
    return [group for group in gated.groups if group.kind == "branch"]


def keep(gated: GatedModule, *kept: bool) -> dict[str, Tensor]:
    """Return masks for all branches."""
    return {g.name: torch.tensor([k]) for g, k in zip(branches(gated), kept, strict=True)}


def check_all_masks(model: nn.Module, x: Tensor, most: int = 4) -> GatedModule:
    """Check open gates, then every mask of the branches, with units open and drawn."""
    gated = gate(model, x)
    assert_partition(gated)
    assert_close(run(gated, x), run(model, x), "open gates against the original")
    found = branches(gated)
    assert len(found) <= most
    for number, kept in enumerate(itertools.product((True, False), repeat=len(found))):
        for share in (1.0, 0.5):
            masks = random_keep(gated, share, number) | keep(gated, *kept)
            gated.set_keep(masks)
            compact = assert_equal_to_compact(gated, x)
            assert_cost(gated, compact, x)
            expected = gated.expected_cost()
            assert (round(expected.macs.item()), round(expected.params.item())) == (
                gated.cost().macs,
                gated.cost().params,
            )
            check_training(gated, compact, x)
    return gated


def check_training(gated: GatedModule, compact: nn.Module, x: Tensor) -> None:
    twin, small = copy.deepcopy(gated).train(), copy.deepcopy(compact).train()
    assert_close(run(small, x), run(twin, x), "compact against gated, in training")
    state = twin.state_dict()
    for name, tensor in small.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert tensor == state[name]
