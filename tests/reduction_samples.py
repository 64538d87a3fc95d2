"""Rows of op_samples.py for reductions, what works along an axis, pooling and resampling."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from sample_nets import Sample, frozen, module, weights
from torch import Tensor, nn

__all__ = ["POOLING", "REDUCTIONS"]

ATEN = torch.ops.aten


def standardised_by_hand(net: Any, y: Tensor) -> Tensor:
    """A convolution whose weight is standardised over its inputs."""
    centred = net.w - net.w.mean((1, 2, 3), keepdim=True)
    return F.conv2d(y, centred / (centred.std((1, 2, 3), keepdim=True) + 0.1), padding=1)


def grid(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)


REDUCTIONS = [
    Sample("sum", lambda net, y: y * y.sum(1, keepdim=True)),
    Sample("sum", lambda net, y: y * y.sum((2, 3), keepdim=True)),
    Sample("mean", lambda net, y: y * y.mean((2, 3), keepdim=True)),
    Sample("mean", lambda net, y: F.adaptive_avg_pool2d(y, 1)),
    Sample("mean", lambda net, y: y - y.mean(1, keepdim=True)),
    Sample("mean", lambda net, y: y - y.mean()),
    Sample(
        "mean",
        lambda net, y: y * torch.mean(y.mean((2, 3))[:, :, None] * net.w, (1, 2)).view(-1, 1, 1, 1),
        extra=lambda: {"w": weights(8, 5)},
    ),
    Sample("mean", standardised_by_hand, extra=lambda: {"w": weights(8, 8, 3, 3)}),
    Sample("amax", lambda net, y: y * y.amax((2, 3), keepdim=True)),
    Sample("amax", lambda net, y: y * y.amax(1, keepdim=True)),
    Sample("amin", lambda net, y: y * y.amin(-1, keepdim=True)),
    Sample("max", lambda net, y: y * y.max(-1, keepdim=True)[0]),
    Sample("max", lambda net, y: y * y.max(-1, keepdim=True).values),
    Sample("max", lambda net, y: y / y.max()),
    Sample("max", lambda net, y: y * y.max(1, keepdim=True)[0]),
    frozen("max", "statistic (max)", lambda net, y: y * y.max(1, keepdim=True)[1]),
    Sample("min", lambda net, y: y * y.min(-1, keepdim=True)[0]),
    Sample("argmax", lambda net, y: y + y.argmax(-1, keepdim=True)),
    Sample("argmin", lambda net, y: y + y.argmin(-1, keepdim=True)),
    frozen("argmax", "statistic (argmax)", lambda net, y: y + y.argmax(1, keepdim=True)),
    Sample("prod", lambda net, y: y * y.prod(-1, keepdim=True)),
    Sample("all", lambda net, y: y * (y > -9).all(-1, keepdim=True)),
    Sample("any", lambda net, y: y * (y > 0).any(-1, keepdim=True)),
    Sample("var", lambda net, y: y * y.var((2, 3), keepdim=True)),
    Sample("std", lambda net, y: y * y.std((2, 3), keepdim=True)),
    Sample("var_mean", lambda net, y: y * torch.var_mean(y, (2, 3), keepdim=True)[0]),
    Sample("std_mean", lambda net, y: y * torch.std_mean(y, (2, 3), keepdim=True)[1]),
    Sample("var_mean", lambda net, y: y * torch.var_mean(y, 1, keepdim=True)[0]),
    frozen("median", "statistic (median)", lambda net, y: y - y.median(1, keepdim=True)[0]),
    frozen("prod", "statistic (prod)", lambda net, y: y * y.prod(1, keepdim=True)),
    Sample("linalg_vector_norm", lambda net, y: F.normalize(y, dim=-1)),
    Sample("linalg_vector_norm", lambda net, y: F.normalize(y, dim=1)),
    Sample("mul", lambda net, y: y * 0.5),
    Sample("div", lambda net, y: y / y.new_tensor(3.0)),
    frozen(
        "linalg_vector_norm",
        "statistic (linalg_vector_norm)",
        lambda net, y: y / torch.linalg.vector_norm(y, -math.inf, 1, True),
    ),
    Sample("norm", lambda net, y: y / ATEN.norm(y, 2, [-1], True)),
    Sample("logsumexp", lambda net, y: y - y.logsumexp(-1, keepdim=True)),
    Sample("logsumexp", lambda net, y: y - y.logsumexp(1, keepdim=True)),
    Sample("median", lambda net, y: y - y.median(-1, keepdim=True)[0]),
    Sample("_softmax", lambda net, y: y.softmax(-1)),
    Sample("_softmax", lambda net, y: y.softmax(1)),
    module(lambda: nn.Softmax(1), "_softmax"),
    Sample("_safe_softmax", lambda net, y: ATEN._safe_softmax(y, -1)),
    Sample("_log_softmax", lambda net, y: y.log_softmax(-1)),
    Sample("_log_softmax", lambda net, y: y.log_softmax(1)),
    module(lambda: nn.LogSoftmax(1), "_log_softmax"),
    frozen("_softmax", "works along it (softmax)", lambda net, y: F.softmin(y, 1)),
    Sample("cumsum", lambda net, y: y.cumsum(2)),
    frozen("cumsum", "works along it (cumsum)", lambda net, y: y.cumsum(1)),
    Sample("cumprod", lambda net, y: y.cumprod(2)),
    Sample("logcumsumexp", lambda net, y: y.logcumsumexp(2)),
    Sample("sort", lambda net, y: y.sort(2)[0]),
    frozen("sort", "works along it (sort)", lambda net, y: y.sort(1)[0]),
    module(nn.Softmax2d, "_softmax"),
    Sample("nansum", lambda net, y: y * y.nansum(1, keepdim=True)),
    Sample("nansum", lambda net, y: y - y.nanmean((2, 3), keepdim=True)),
    Sample("nanmedian", lambda net, y: y - y.nanmedian(2, keepdim=True)[0]),
    Sample("aminmax", lambda net, y: y * torch.aminmax(y, dim=-1, keepdim=True)[1]),
    frozen("aminmax", "statistic (aminmax)", lambda net, y: y - torch.aminmax(y)[0]),
    Sample("mode", lambda net, y: y * y.mode(keepdim=True)[0]),
    Sample("mode", lambda net, y: y * y.mode(2)[0].unsqueeze(2)),
    frozen("mode", "statistic (mode)", lambda net, y: y * y.mode(1, keepdim=True)[0]),
    Sample("kthvalue", lambda net, y: y * y.kthvalue(2)[0].unsqueeze(-1)),
    frozen("kthvalue", "statistic (kthvalue)", lambda net, y: y * y.kthvalue(2, 1, True)[0]),
    Sample("cummax", lambda net, y: y.cummax(2)[0]),
    Sample("cummin", lambda net, y: y.cummin(-1)[0]),
    frozen("cummin", "works along it (cummin)", lambda net, y: y.cummin(1)[0]),
    Sample("topk", lambda net, y: y.topk(3)[0]),
    Sample("topk", lambda net, y: y.topk(3, dim=2, sorted=True).values),
    frozen("topk", "takes the largest positions", lambda net, y: y.topk(3, 1)[0], out=3),
    Sample(
        "linalg_cross",
        lambda net, y: torch.linalg.cross(y[:, :, :3], y[:, :, 3:].sin(), dim=2),
    ),
    Sample(
        "linalg_cross",
        lambda net, y: torch.cross(net.op(y), net.op(y).sin(), dim=1),
        extra=lambda: {"op": nn.Conv2d(8, 3, 1)},  # whose channels are frozen
        out=3,
    ),
]

POOLING = [
    module(lambda: nn.MaxPool1d(2), "", kind="signal"),
    module(lambda: nn.AvgPool1d(2), "", kind="signal"),
    module(lambda: nn.AdaptiveMaxPool1d(2), "", kind="signal"),
    module(lambda: nn.MaxPool2d(2), "max_pool2d_with_indices"),
    module(lambda: nn.MaxPool3d(2), "max_pool3d_with_indices", kind="volume"),
    module(lambda: nn.AvgPool2d(3, 1), "avg_pool2d"),
    module(lambda: nn.AvgPool3d(2), "avg_pool3d", kind="volume"),
    module(lambda: nn.AdaptiveAvgPool2d(2), "_adaptive_avg_pool2d"),
    module(lambda: nn.AdaptiveAvgPool3d(2), "_adaptive_avg_pool3d", kind="volume"),
    module(lambda: nn.AdaptiveMaxPool2d(2), "adaptive_max_pool2d"),
    module(lambda: nn.AdaptiveMaxPool3d(2), "adaptive_max_pool3d", kind="volume"),
    module(
        lambda: nn.FractionalMaxPool2d(2, 5), "fractional_max_pool2d"
    ),  # 6 to 5: nothing left to chance
    Sample("upsample_nearest1d", lambda net, y: F.interpolate(y, scale_factor=2), kind="signal"),
    Sample("upsample_nearest2d", lambda net, y: F.interpolate(y, size=(9, 9))),
    Sample("upsample_nearest3d", lambda net, y: F.interpolate(y, scale_factor=2), kind="volume"),
    Sample(
        "_upsample_nearest_exact1d",
        lambda net, y: F.interpolate(y, 5, mode="nearest-exact"),
        kind="signal",
    ),
    Sample("_upsample_nearest_exact2d", lambda net, y: F.interpolate(y, 5, mode="nearest-exact")),
    Sample(
        "_upsample_nearest_exact3d",
        lambda net, y: F.interpolate(y, 5, mode="nearest-exact"),
        kind="volume",
    ),
    Sample(
        "upsample_linear1d",
        lambda net, y: F.interpolate(y, scale_factor=2, mode="linear"),
        kind="signal",
    ),
    Sample("upsample_bilinear2d", lambda net, y: F.interpolate(y, scale_factor=2, mode="bilinear")),
    Sample("upsample_bicubic2d", lambda net, y: F.interpolate(y, scale_factor=2, mode="bicubic")),
    Sample(
        "upsample_trilinear3d", lambda net, y: F.interpolate(y, 5, mode="trilinear"), kind="volume"
    ),
    Sample(
        "_upsample_bilinear2d_aa",
        lambda net, y: F.interpolate(y, 4, mode="bilinear", antialias=True),
    ),
    Sample(
        "_upsample_bicubic2d_aa", lambda net, y: F.interpolate(y, 4, mode="bicubic", antialias=True)
    ),
    Sample("reflection_pad1d", lambda net, y: F.pad(y, (1, 2), mode="reflect"), kind="signal"),
    Sample("reflection_pad2d", lambda net, y: F.pad(y, (1, 2, 0, 1), mode="reflect")),
    Sample(
        "reflection_pad3d",
        lambda net, y: F.pad(y, (1, 2, 0, 1, 1, 0), mode="reflect"),
        kind="volume",
    ),
    Sample("replication_pad1d", lambda net, y: F.pad(y, (1, 2), mode="replicate"), kind="signal"),
    Sample("replication_pad2d", lambda net, y: F.pad(y, (1, 2, 0, 1), mode="replicate")),
    Sample(
        "replication_pad3d",
        lambda net, y: F.pad(y, (1, 2, 0, 1, 1, 0), mode="replicate"),
        kind="volume",
    ),
    Sample(
        "grid_sampler_2d", lambda net, y: F.grid_sample(y, grid(2, 4, 4, 2), align_corners=False)
    ),
    Sample(
        "grid_sampler_3d",
        lambda net, y: F.grid_sample(y, grid(2, 4, 4, 4, 3), align_corners=False),
        kind="volume",
    ),
]
