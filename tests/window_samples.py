"""Rows of op_samples.py for windows, look-ups and writes by number, bilinear forms and distances."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from sample_nets import Sample, frozen, weights
from torch import Tensor, nn

__all__ = ["BILINEAR", "LOOKUPS", "WINDOWS"]

ATEN = torch.ops.aten
AT = torch.tensor([0, 3])
HALF = torch.tensor(0.5, dtype=torch.float64)
BAGS = torch.tensor([[0, 1], [1, 2]])


def bag(mode: str) -> Sample:
    return Sample(
        "_embedding_bag",
        lambda net, y: y + net.op(BAGS)[:, None],
        kind="tokens",
        extra=lambda: {"op": nn.EmbeddingBag(7, 8, mode=mode)},
    )


def with_embedding(keys: str, apply: Any) -> Sample:
    return Sample(keys, apply, kind="tokens", extra=lambda: {"op": nn.Embedding(7, 8)})


def unpooled(net: Any, y: Tensor, function: Any) -> Tensor:
    found = net.op(y)
    return function(found[0], found[1], 2)


WINDOWS = [
    Sample(
        "im2col",
        lambda net, y: (net.w @ F.unfold(y, 3, padding=1)).view(y.shape[0], 6, 6, 6),
        extra=lambda: {"w": weights(6, 72)},
        out=6,
    ),
    Sample("im2col", lambda net, y: F.unfold(y, 3, padding=1).view(2, 8, 9, 6, 6).mean(2)),
    Sample(
        "im2col col2im", lambda net, y: F.fold(F.unfold(y, 2, stride=2).relu(), (6, 6), 2, stride=2)
    ),
    Sample("col2im", lambda net, y: F.fold(y.flatten(2), (7, 7), 2, stride=1), out=2),
    Sample("unfold", lambda net, y: y.unfold(2, 2, 2).unfold(3, 2, 1).amax((-1, -2))),
    frozen("unfold", "slides windows", lambda net, y: y.unfold(1, 2, 2)[..., 0], out=4),
    Sample(
        "max_unpool2d",
        lambda net, y: unpooled(net, y, F.max_unpool2d),
        extra=lambda: {"op": nn.MaxPool2d(2, return_indices=True)},
    ),
    Sample(
        "max_unpool3d",
        lambda net, y: unpooled(net, y, F.max_unpool3d),
        kind="volume",
        extra=lambda: {"op": nn.MaxPool3d(2, return_indices=True)},
    ),
    Sample("tril", lambda net, y: y.tril()),
    frozen("triu", "takes a triangle", lambda net, y: y.triu(), kind="tokens"),
    Sample("_fft_r2c _fft_c2r", lambda net, y: torch.fft.irfft2(torch.fft.rfft2(y) * 2, s=(6, 6))),
    Sample("_fft_c2c", lambda net, y: torch.fft.ifft(torch.fft.fft(y, dim=2) + 1, dim=2).abs()),
    frozen("_fft_r2c", "transforms over it", lambda net, y: torch.fft.rfft(y, dim=1).abs(), out=5),
]

LOOKUPS = [
    with_embedding("embedding", lambda net, y: y + net.op(torch.arange(5))),
    with_embedding(  # tied: the table is the output layer, too
        "embedding",
        lambda net, y: F.linear(y + net.op(torch.arange(5)), net.op.weight) @ net.op.weight,
    ),
    bag("mean"),
    bag("sum"),
    bag("max"),
    Sample(
        "_embedding_bag_forward_only",
        lambda net, y: y + ATEN._embedding_bag_forward_only(net.w, BAGS.flatten(), AT[:1] * 0)[0],
        kind="tokens",
        extra=lambda: {"w": weights(7, 8)},
    ),
    frozen("gather", "fixed size", lambda net, y: y.gather(2, torch.zeros(2, 8, 2, 6).long())),
    frozen("gather", "reads positions", lambda net, y: y.gather(1, torch.zeros(2, 8, 6, 6).long())),
    Sample("gather", lambda net, y: y.gather(2, y.argsort(2))),
    Sample(
        "gather",
        lambda net, y: y.gather(1, AT[None, :, None].expand(y.size(0), -1, y.size(2))),
        kind="tokens",
    ),
    Sample(
        "gather",
        lambda net, y: y.gather(1, AT[None, :, None].repeat(y.size(0), 1, 8)),
        kind="tokens",
    ),
    Sample("gather", lambda net, y: torch.take_along_dim(y, AT[None, :, None], 1), kind="tokens"),
    Sample("scatter", lambda net, y: y.scatter(2, y.argmax(2, keepdim=True), 1.0)),
    frozen(
        "scatter",
        "writes positions",
        lambda net, y: y.scatter(1, torch.zeros(2, 1, 6, 6).long(), 1.0),
    ),
    Sample("scatter_add", lambda net, y: y.scatter_add(3, y.argsort(3), y.sin())),
    frozen(
        "scatter_add",
        "writes positions",
        lambda net, y: y.scatter_add(3, y[:, 2:].argsort(3), y.sin()),
    ),
    Sample(
        "scatter_reduce", lambda net, y: y.scatter_reduce(2, y.argsort(2) // 2, y.sin(), "amax")
    ),
    Sample("index_fill", lambda net, y: y.index_fill(2, AT, 0.5)),
    Sample("index_add", lambda net, y: y.index_add(2, AT, y[:, :, 1:3].sin())),
    Sample("index_copy", lambda net, y: y.index_copy(3, AT, y[..., 1:3])),
    frozen("index_fill", "positions of it by number", lambda net, y: y.index_fill(1, AT, 0.0)),
    Sample("index_put", lambda net, y: ATEN.index_put(y, [None, None, AT], HALF)),
    Sample("index_put", lambda net, y: ATEN.index_put(y, [None, None, AT], y[:, :, 1:3])),
    Sample(
        "index_put",
        lambda net, y: ATEN.index_put(y, [None, None, AT, AT], net.w),
        extra=lambda: {"w": weights(8, 1)},
    ),
    frozen(
        "index_put",
        "positions of it by number",
        lambda net, y: ATEN.index_put(y, [None, AT], HALF),
    ),
    frozen(
        "index_put",
        "positions of it by number",
        lambda net, y: ATEN.index_put(y, [y > 0.5], HALF),
    ),
    Sample(
        "_unsafe_index_put",
        lambda net, y: ATEN._unsafe_index_put(y, [None, None, AT], HALF),
    ),
    Sample(
        "_index_put_impl",
        lambda net, y: ATEN._index_put_impl_(y.clone(), [None, None, AT], HALF),
    ),
]

BILINEAR = [
    Sample(
        "_trilinear",
        lambda net, y: net.op(y, y.sin()),
        kind="tokens",
        extra=lambda: {"op": nn.Bilinear(8, 8, 6)},
        out=6,
    ),
    Sample(
        "_trilinear",
        lambda net, y: F.bilinear(y, y[..., :3], net.w),
        kind="tokens",
        extra=lambda: {"w": weights(6, 8, 3)},
        out=6,
    ),
    Sample("_cdist_forward", lambda net, y: torch.cdist(y, y.sin()) @ y, kind="tokens"),
    Sample(
        "_cdist_forward",
        lambda net, y: y * torch.cdist(y, net.w, p=1.0).sum(-1, keepdim=True),
        kind="tokens",
        extra=lambda: {"w": weights(4, 8)},
    ),
    Sample(
        "mul div",
        lambda net, y: y * F.cosine_similarity(y, y.sin(), dim=1).unsqueeze(1),
    ),
    Sample(
        "diag_embed",
        lambda net, y: y @ torch.diag_embed(net.w),
        kind="tokens",
        extra=lambda: {"w": weights(8)},
    ),
    frozen(
        "diag_embed",
        "fixed size",
        lambda net, y: y @ torch.diag_embed(net.w, offset=1)[:8, :8],
        kind="tokens",
        extra=lambda: {"w": weights(8)},
    ),
]
