"""One row per operator: a small network that runs it between two layers, so that channels flow through it.

To add an operator: one rule in ``fxprune/rules``, one row here. The first entry of a row names the registered
operators that it is there for; test_op_samples.py checks that it executes them, and that none is left out.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from recurrent_samples import FACTORIES, RECURRENT
from sample_nets import Sample, frozen, module, weights
from torch import Tensor, nn
from window_samples import BILINEAR, LOOKUPS, WINDOWS

__all__ = ["NO_ROW", "POINTWISE", "SAMPLES"]

ATEN = (
    torch.ops.aten
)  # for operators that no public function runs here; captured graphs may contain them


def grid(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)


def bn(net: Any) -> tuple[Tensor, ...]:
    return net.op.weight, net.op.bias, net.op.running_mean, net.op.running_var


def standardised_by_hand(net: Any, y: Tensor) -> Tensor:
    """A convolution whose weight is standardised over its inputs."""
    centred = net.w - net.w.mean((1, 2, 3), keepdim=True)
    return F.conv2d(y, centred / (centred.std((1, 2, 3), keepdim=True) + 0.1), padding=1)


CONVOLUTIONS = [
    module(lambda: nn.Conv1d(8, 6, 3), "convolution", kind="signal", out=6),
    module(lambda: nn.Conv2d(8, 6, 3, stride=2, bias=False), "convolution", out=6),
    module(lambda: nn.Conv3d(8, 6, 3), "convolution", kind="volume", out=6),
    module(lambda: nn.Conv2d(8, 12, 3, groups=2), "convolution", out=12),
    module(lambda: nn.Conv2d(8, 8, 3, groups=8), "convolution"),
    module(lambda: nn.Conv2d(8, 16, 3, groups=8), "convolution", out=16),
    module(lambda: nn.ConvTranspose1d(8, 6, 3), "convolution", kind="signal", out=6),
    module(lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), "convolution", out=6),
    module(lambda: nn.ConvTranspose3d(8, 6, 2), "convolution", kind="volume", out=6),
    module(lambda: nn.ConvTranspose2d(8, 12, 3, groups=2), "convolution", out=12),
    module(lambda: nn.ConvTranspose2d(8, 16, 3, groups=8), "convolution", out=16),
    Sample(
        "convolution",
        lambda net, y: F.conv2d(y, net.w, padding=1, groups=8),
        extra=lambda: {"w": weights(8, 1, 3, 3)},
    ),
]

PRODUCTS = [
    module(lambda: nn.Linear(8, 6, bias=False), "mm", kind="rows", out=6),
    module(lambda: nn.Linear(8, 6), "addmm", kind="rows", out=6),
    Sample("bmm", lambda net, y: torch.bmm(y, y.transpose(1, 2)) @ y, kind="tokens"),
    Sample("baddbmm", lambda net, y: torch.baddbmm(y, y @ y.transpose(1, 2), y), kind="tokens"),
    Sample(
        "mv",
        lambda net, y: y * torch.mv(y, net.w).unsqueeze(1),
        kind="rows",
        extra=lambda: {"w": weights(8)},
        counted=False,
    ),
    Sample(
        "dot",
        lambda net, y: (y + net.v) * torch.dot(net.v, net.w),
        kind="rows",
        extra=lambda: {"v": weights(8), "w": weights(8)},
    ),
    Sample(
        "vdot",
        lambda net, y: (y + net.v) * torch.vdot(net.v, net.w),
        kind="rows",
        extra=lambda: {"v": weights(8), "w": weights(8)},
    ),
]

NORMS = [
    module(lambda: nn.BatchNorm2d(8), "native_batch_norm"),
    module(lambda: nn.BatchNorm2d(8), "native_batch_norm", training=True),
    module(lambda: nn.InstanceNorm2d(8, affine=True), ""),
    module(lambda: nn.LayerNorm(8), "native_layer_norm", kind="tokens"),
    module(lambda: nn.LayerNorm(8, elementwise_affine=False), "native_layer_norm", kind="tokens"),
    module(lambda: nn.RMSNorm(8), "mean", kind="tokens"),
    module(lambda: nn.GroupNorm(1, 8), "native_group_norm"),
    module(lambda: nn.GroupNorm(2, 8), "native_group_norm"),
    module(lambda: nn.GroupNorm(4, 8), "native_group_norm"),
    module(lambda: nn.GroupNorm(8, 8, affine=False), "native_group_norm"),
    module(lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True), ""),
    module(lambda: nn.InstanceNorm2d(8, track_running_stats=True), "", training=True),
    frozen(
        "native_batch_norm",
        "statistics over it when it trains",
        lambda net, y: net.op(y.transpose(1, 2)).transpose(1, 2),
        extra=lambda: {"op": nn.BatchNorm2d(6)},
    ),
    Sample(
        "native_batch_norm",
        lambda net, y: F.batch_norm(y.transpose(1, 2), None, None, training=True).transpose(1, 2),
    ),
    frozen("avg_pool3d", "works on it as on pixels", lambda net, y: F.local_response_norm(y, 3)),
    frozen(
        "_weight_norm_interface",
        "fixed size",
        lambda net, y: net.op(y),
        extra=lambda: {"op": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))},
    ),
    Sample(
        "_native_batch_norm_legit",
        lambda net, y: ATEN._native_batch_norm_legit(y, *bn(net), True, 0.1, 1e-5)[0],
        extra=lambda: {"op": nn.BatchNorm2d(8)},
    ),
    Sample(
        "_native_batch_norm_legit_no_training",
        lambda net, y: ATEN._native_batch_norm_legit_no_training(y, *bn(net), 0.1, 1e-5)[0],
        extra=lambda: {"op": nn.BatchNorm2d(8)},
    ),
    Sample(
        "_native_batch_norm_legit_functional",
        lambda net, y: ATEN._native_batch_norm_legit_functional(y, *bn(net), True, 0.1, 1e-5)[0],
        extra=lambda: {"op": nn.BatchNorm2d(8)},
    ),
    Sample(
        "_batch_norm_with_update",
        lambda net, y: ATEN._batch_norm_with_update(y, *bn(net), 0.1, 1e-5)[0],
        extra=lambda: {"op": nn.BatchNorm2d(8)},
    ),
    Sample(
        "_batch_norm_no_update",
        lambda net, y: ATEN._batch_norm_no_update(y, *bn(net), 0.1, 1e-5)[0],
        extra=lambda: {"op": nn.BatchNorm2d(8)},
    ),
]

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
    frozen(
        "gather", "by number", lambda net, y: y.gather(2, torch.zeros(2, 8, 2, 6, dtype=torch.long))
    ),
    Sample("_unsafe_index", lambda net, y: ATEN._unsafe_index(y, [None, None, torch.tensor([1])])),
    Sample("pixel_shuffle", lambda net, y: F.pixel_shuffle(y, 2), out=2),
    Sample("pixel_unshuffle", lambda net, y: F.pixel_unshuffle(y, 2), out=32),
]

ELEMENTWISE = [
    Sample("hardswish", lambda net, y: F.hardswish(y)),
    Sample("log_sigmoid_forward", lambda net, y: F.logsigmoid(y)),
    Sample("floor_divide", lambda net, y: y.floor_divide(0.25)),
    Sample("polar", lambda net, y: torch.polar(y.exp(), y).angle()),
    Sample("native_dropout", lambda net, y: ATEN.native_dropout(y, 0.0, True)[0]),
    Sample("bernoulli", lambda net, y: y * torch.bernoulli(torch.ones_like(y))),
    Sample("rrelu_with_noise", lambda net, y: F.rrelu(y, 0.25, 0.25, training=True)),
    Sample("rand_like", lambda net, y: y + torch.rand_like(y) * 0),
    Sample("randn_like", lambda net, y: y + torch.randn_like(y) * 0),
    Sample("zeros_like", lambda net, y: y + torch.zeros_like(y)),
    Sample("ones_like", lambda net, y: y + torch.ones_like(y)),
    Sample("empty_like zero", lambda net, y: y + torch.empty_like(y).zero_()),
    Sample("full_like", lambda net, y: y + torch.full_like(y, 3.0)),
    Sample("fill", lambda net, y: y + torch.empty_like(y).fill_(2.0)),
    Sample("normal", lambda net, y: y + torch.empty_like(y).normal_(1.0, 0.0)),
    Sample("uniform", lambda net, y: y + torch.empty_like(y).uniform_(1.0, 1.0)),
    Sample("new_empty", lambda net, y: y + y.new_empty(y.shape).fill_(1.0)),
    Sample("new_zeros", lambda net, y: y + y.new_zeros(y.shape)),
    Sample("new_ones", lambda net, y: y + y.new_ones(y.shape)),
    Sample("new_full", lambda net, y: y + y.new_full(y.shape, 2.0)),
    module(lambda: nn.PReLU(8), "_prelu_kernel"),
    module(nn.PReLU, "_prelu_kernel"),
    Sample("glu", lambda net, y: F.glu(y, 1), out=4),
    module(nn.GLU, "glu", kind="tokens", out=4),
]

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

# Recognised by torch.Tag.pointwise: none of them has a rule of its own. The second operand is a parameter per channel.
POINTWISE = {
    **{
        name: Sample("", lambda net, y, name=name: getattr(F, name)(y))
        for name in """relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid hardsigmoid hardtanh tanh softplus
        softsign tanhshrink softshrink hardshrink""".split()
    },
    **{
        name: Sample("", lambda net, y, name=name: y + getattr(torch, name)(y))
        for name in """abs neg exp expm1 sin cos atan asinh erf floor ceil round trunc sign square reciprocal
        sigmoid tanh relu isfinite nan_to_num logical_not deg2rad frac""".split()
    },
    **{
        f"{name}_": Sample("", lambda net, y, name=name: getattr(y, f"{name}_")())
        for name in "relu sigmoid tanh exp neg abs square".split()
    },
    **{
        f"{name} by channel": Sample(
            "",
            lambda net, y, name=name: y + getattr(torch, name)(y, net.w),
            extra=lambda: {"w": weights(8, 1, 1)},
        )
        for name in """add sub mul div maximum minimum fmod remainder atan2 hypot copysign xlogy logaddexp gt le
        eq logical_and heaviside nextafter""".split()
    },
    "pow": Sample("", lambda net, y: y.abs() ** 1.5),
    "scalars": Sample("", lambda net, y: 1 - 2 * y / 3 + 4),
    "clamp": Sample("", lambda net, y: y.clamp(-0.1, 0.4)),
    "where": Sample("", lambda net, y: torch.where(y > 0, y, -1.0)),
    "lerp": Sample("", lambda net, y: torch.lerp(y, y.sin(), 0.3)),
    "addcmul": Sample("", lambda net, y: torch.addcmul(y, y, y.sin(), value=0.5)),
    "masked_fill": Sample("", lambda net, y: y.masked_fill(y > 0.2, 0.1)),
    "threshold": Sample("", lambda net, y: F.threshold(y, 0.1, 20)),
    "outputs of different width": Sample(
        "", lambda net, y: y * y.mean((2, 3), keepdim=True) + y[:, :, :1]
    ),
    "fixed operand": frozen("", "fixed size", lambda net, y: y + torch.arange(8).view(8, 1, 1)),
}

_COMPOSITE = "composite: torch takes it apart before it is dispatched"
NO_ROW = {
    **dict.fromkeys(
        (
            f"aten::{name}"
            for name in """linear log_sigmoid prelu contiguous to positive reshape swapaxes numpy_T tile concat chunk
            unsafe_chunk batch_norm softmax log_softmax argsort max_pool1d max_pool1d_with_indices
            avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d max_pool2d adaptive_avg_pool2d max_pool3d
            adaptive_avg_pool3d""".split()
        ),
        _COMPOSITE,
    ),
    "aten::cudnn_batch_norm": "needs a GPU of NVIDIA's",
    "aten::masked_select": "the shape of its result depends on data, which the analysis does not have",
}

SAMPLES = [
    *CONVOLUTIONS,
    *PRODUCTS,
    *NORMS,
    *MOVEMENT,
    *ELEMENTWISE,
    *REDUCTIONS,
    *POOLING,
    *RECURRENT,
    *FACTORIES,
    *WINDOWS,
    *LOOKUPS,
    *BILINEAR,
]
