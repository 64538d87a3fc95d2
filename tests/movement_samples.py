"""Rows of op_samples.py for data movement: operators that re-arrange elements, take ranges, and join."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sample_nets import Sample, frozen, module, weights
from torch import nn

__all__ = ["MOVEMENT"]

ATEN = torch.ops.aten


def one() -> dict[str, Any]:
    return {"w": weights(1, 1, 1, 1)}


MOVEMENT = [
    Sample("alias", lambda net, y: ATEN.alias(y)),
    Sample("clone", lambda net, y: y.clone()),
    Sample("clone", lambda net, y: y.transpose(1, 2).contiguous().transpose(1, 2)),
    Sample("detach", lambda net, y: y.detach()),
    Sample("lift_fresh", lambda net, y: y * torch.tensor(2.0)),
    Sample("_to_copy", lambda net, y: y.float().to(torch.float64)),
    Sample("lift_fresh_copy", lambda net, y: ATEN.lift_fresh_copy(y)),
    frozen(
        "_reshape_alias",
        "a size written in it",
        lambda net, y: ATEN._reshape_alias(y, y.size(), y.stride()),
    ),
    frozen("as_strided", "a size written in it", lambda net, y: y.as_strided(y.size(), y.stride())),
    frozen(
        "as_strided",
        "by memory position",
        lambda net, y: y.as_strided((2, 8, 6, 5), (288, 36, 6, 1)),
    ),
    Sample("copy", lambda net, y: torch.empty_like(y).copy_(y)),
    Sample("view", lambda net, y: y.view(2, 8, 36).view(2, 8, 6, 6)),
    Sample("view", lambda net, y: y.view(2, 2, 4, 6, 6).reshape(2, 8, 6, 6)),
    Sample("view", lambda net, y: y.flatten(1).unflatten(1, (8, 6, 6))),
    Sample(
        "_unsafe_view", lambda net, y: y @ net.w, kind="tokens", extra=lambda: {"w": weights(8, 8)}
    ),
    Sample("permute", lambda net, y: y.permute(0, 2, 3, 1).permute(0, 3, 1, 2)),
    Sample("t", lambda net, y: y.t().sin().t(), kind="rows"),
    Sample("transpose", lambda net, y: y.transpose(1, -1).transpose(1, -1)),
    Sample("unsqueeze squeeze", lambda net, y: y.unsqueeze(1).sin().squeeze(1)),
    Sample("squeeze", lambda net, y: y.mean((2, 3), keepdim=True).squeeze().view(2, -1, 1, 1)),
    Sample("squeeze", lambda net, y: y.mean((2, 3), keepdim=True).squeeze((2, 3))[..., None, None]),
    Sample(
        "expand",
        lambda net, y: y.mean(1, keepdim=True).expand(2, 8, 6, 6),
    ),
    Sample(
        "expand", lambda net, y: y + net.w.expand(8, 6, 6), extra=lambda: {"w": weights(8, 1, 1)}
    ),
    Sample("expand", lambda net, y: y + net.w.expand_as(y), extra=lambda: {"w": weights(8, 1, 1)}),
    Sample("repeat", lambda net, y: y.repeat(1, 2, 1, 1), out=16),
    Sample("repeat", lambda net, y: torch.tile(y, (2, 1, 1)), out=16),
    Sample("cat", lambda net, y: torch.cat([y, y.sin()], 1), out=16),
    Sample("cat", lambda net, y: torch.cat([y, y], 2)),
    Sample("stack", lambda net, y: torch.stack([y, y.sin()], 2).sum(2)),
    Sample("split", lambda net, y: torch.cat(y.split(3, 1)[::-1], 1)),
    Sample("split", lambda net, y: y.chunk(2, 1)[0] + y.chunk(2, 1)[1], out=4),
    Sample("split_with_sizes", lambda net, y: torch.cat(y.split([2, 6], 1), 1)),
    Sample("unsafe_split", lambda net, y: torch.unsafe_split(y, 4, 2)[0]),
    frozen("unbind", "apart one by one", lambda net, y: torch.stack(y.unbind(1)[:5], 1), out=5),
    frozen(
        "select", "one position of it by number", lambda net, y: y * y.select(1, 0).unsqueeze(1)
    ),
    Sample("select", lambda net, y: y.select(2, 0).unsqueeze(2)),
    Sample("slice", lambda net, y: y[:, 2:7], out=5),
    Sample("slice", lambda net, y: y.narrow(1, 2, 5), out=5),
    Sample("slice", lambda net, y: y[:, ::2], out=4),
    Sample("flip", lambda net, y: y.flip(1)),
    Sample("flip", lambda net, y: y.flip(2, 3)),
    frozen("roll", "shifts it", lambda net, y: y.roll(3, 1)),
    Sample("roll", lambda net, y: y.roll((1, 2), (2, 3))),
    Sample("constant_pad_nd", lambda net, y: F.pad(y, (1, 1, 0, 0, 2, 3)), out=13),
    Sample("constant_pad_nd", lambda net, y: F.pad(y, (-1, 1), value=0.5)),
    Sample("index", lambda net, y: y[:, torch.tensor([3, 1, 2])], out=3),
    frozen("index", "by number", lambda net, y: y[:, torch.tensor([[3, 1, 2]])].squeeze(1), out=3),
    Sample("index", lambda net, y: y[:, :, torch.tensor([3, 1])]),
    Sample("index_select", lambda net, y: y.index_select(1, torch.tensor([3, 1, 2])), out=3),
    Sample("index_select", lambda net, y: y.index_select(2, torch.tensor([3, 1, 2]))),
    Sample("_unsafe_index", lambda net, y: ATEN._unsafe_index(y, [None, None, torch.tensor([1])])),
    Sample("pixel_shuffle", lambda net, y: F.pixel_shuffle(y, 2), out=2),
    Sample("pixel_unshuffle", lambda net, y: F.pixel_unshuffle(y, 2), out=32),
    Sample("repeat", lambda net, y: y + net.w.repeat(1, 8, 1, 1), extra=one),
    Sample("repeat", lambda net, y: y + torch.tile(net.w, (8, 1, 1)), extra=one),
    Sample("repeat", lambda net, y: y * net.w.repeat(y.size(0), y.size(1), 1, 1), extra=one),
    Sample("repeat_interleave", lambda net, y: y.repeat_interleave(2, 1), out=16),
    Sample("repeat_interleave", lambda net, y: y.repeat_interleave(2, dim=-1)),
    Sample(
        "repeat_interleave",
        lambda net, y: torch.repeat_interleave(y, repeats=3, dim=1) * net.w,
        extra=lambda: {"w": weights(8, 1, 1).repeat_interleave(3, 0)},
        out=24,
    ),
    frozen("", "by number", lambda net, y: y.repeat_interleave(torch.arange(8), 1), out=28),
    Sample("index", lambda net, y: y[:, torch.arange(8) % 3 > 0], out=5),
    Sample("index", lambda net, y: y[:, :, torch.arange(6) % 3 > 0]),
    module(lambda: nn.Unflatten(1, (2, 4)), "", after=lambda y: y.sin().flatten(1, 2)),
    module(lambda: nn.Unflatten(1, (2, -1)), "", after=lambda y: y.sum(1), out=4),
    module(lambda: nn.ChannelShuffle(4), ""),
    Sample("", lambda net, y: F.channel_shuffle(y, 2).sigmoid()),
    module(lambda: nn.ConstantPad3d((0, 0, 0, 0, 1, 2), 0.5), "", out=11),
]
