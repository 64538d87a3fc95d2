"""Rows of op_samples.py for pointwise operators, with and without a rule of their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sample_nets import Sample, frozen, module, weights
from torch import nn

__all__ = ["ELEMENTWISE", "POINTWISE"]

ATEN = torch.ops.aten

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
