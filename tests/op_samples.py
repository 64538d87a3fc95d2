"""One row per operator: a small network that runs it between two layers, so that channels flow through it.

To add an operator: one rule in ``fxprune/rules``, one row here. The first entry of a row names the registered
operators that it is there for; test_op_samples.py checks that it executes them, and that none is left out.
Most families have a file of their own (``*_samples.py``); here are the layers, and the table of all.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from movement_samples import MOVEMENT
from pointwise_samples import ELEMENTWISE, POINTWISE
from recurrent_samples import FACTORIES, RECURRENT
from reduction_samples import POOLING, REDUCTIONS
from sample_nets import Sample, frozen, module, weights
from torch import Tensor, nn
from window_samples import BILINEAR, LOOKUPS, WINDOWS

__all__ = ["NO_ROW", "POINTWISE", "SAMPLES"]

ATEN = (
    torch.ops.aten
)  # for operators that no public function runs here; captured graphs may contain them


def bn(net: Any) -> tuple[Tensor, ...]:
    return net.op.weight, net.op.bias, net.op.running_mean, net.op.running_var


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
