"""One row per mechanism, each checked by test_user_models.py.

Most rows are the middle of one small network: ``y = out(relu(b(middle(net, a(x)))))`` with 3 -> 16 -> 8 -> 4
channels. What cannot be right yet is marked with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from user_models import (
    Case,
    CentredInTraining,
    Dense,
    EqualisedConv,
    Fused,
    Gru,
    Mixer,
    Pair,
    StandardisedConv,
    Unet,
    conv,
    dynamic,
    global_context,
    middle,
    non_local,
    own_attention,
    param,
    read_before_and_after,
    selective,
    shuffled,
    whole,
    windows,
    wrapped_pad,
    wrapped_scale,
    written_out,
    written_through,
)

__all__ = ["CASES"]


def beside(function: Callable[..., Tensor], width: int = 1, broken: str = "") -> Case:
    """A second branch z, whose shape is written by looking at the first one."""
    return whole(
        lambda n, x: n.out(n.b(n.a(x)) + n.c(function(n.z(x), n.a(x)))),
        lambda: {"z": conv(3, width, 1), "c": conv(16, 8, 1)},
        broken=broken,
    )


_EXAMPLE = "a size is written as it was for the example's batch or image"

CASES: dict[str, Case] = {
    # blocks of known architectures
    "dense block": Case(Dense),
    "two resolutions": Case(Fused),
    "unet, padded": Case(lambda: Unet(False), (2, 3, 9, 9)),
    "unet, cropped": Case(lambda: Unet(True), (2, 3, 9, 9)),
    "mixer": Case(Mixer, other_sizes=False),
    "gru": Case(Gru, (2, 3, 10)),
    "squeeze and excite": middle(
        lambda n, h: h * n.e(F.relu(n.s(h.mean((2, 3))))).sigmoid()[:, :, None, None],
        lambda: {"s": nn.Linear(16, 4), "e": nn.Linear(4, 16)},
    ),
    "efficient channel attention": middle(
        lambda n, h: (
            h * n.e(h.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None].sigmoid().expand_as(h)
        ),
        lambda: {"e": nn.Conv1d(1, 1, 3, padding=1)},
    ),
    "spatial attention": middle(
        lambda n, h: (
            h * n.s(torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], 1)).sigmoid()
        ),
        lambda: {"s": conv(2, 1, 7)},
    ),
    "selective kernels": middle(
        selective,
        lambda: {
            "k1": conv(16, 16, 1),
            "k2": conv(16, 16),
            "fc": nn.Linear(16, 8),
            "e": nn.Linear(8, 32),
        },
    ),
    "global context": middle(
        global_context,
        lambda: {
            "m": conv(16, 1, 1),
            "t": nn.Sequential(conv(16, 4, 1), nn.LayerNorm([4, 1, 1]), nn.ReLU(), conv(4, 16, 1)),
        },
    ),
    "non-local": middle(
        non_local, lambda: {k: conv(16, 8, 1) for k in "tpg"} | {"o": conv(8, 16, 1)}
    ),
    "attention by hand": middle(
        own_attention, lambda: {"qkv": conv(16, 48, 1), "p": conv(16, 16, 1)}
    ),
    "windows": middle(windows),
    "channel shuffle": middle(shuffled, lambda: {"k": conv(8, 8)}),
    "ghost": middle(
        lambda n, h: torch.cat([n.p(h), n.c(n.p(h))], 1)[:, :16],
        lambda: {"p": conv(16, 10, 1), "c": conv(10, 10, groups=10)},
    ),
    "temporal shift": middle(
        lambda n, h: torch.cat([h[:, :4].roll(1, 0), h[:, 4:8].roll(-1, 0), h[:, 8:]], 1)
    ),
    "axial convolution": middle(
        lambda n, h: (
            n.k(h.permute(0, 2, 1, 3).reshape(h.shape[0] * h.shape[2], h.shape[1], h.shape[3]))
            .view(h.shape[0], h.shape[2], 16, h.shape[3])
            .transpose(1, 2)
        ),
        lambda: {"k": nn.Conv1d(16, 16, 3, padding=1)},
    ),
    "bilinear pooling": whole(
        lambda n, x: n.l(
            torch.bmm(n.a(x).flatten(2), n.a(x).flatten(2).transpose(1, 2)).flatten(1)
        ),
        lambda: {"l": nn.Linear(256, 4)},
    ),
    "cosine classifier": whole(
        lambda n, x: F.linear(F.normalize(n.a(x).mean((2, 3))), F.normalize(n.w)),
        lambda: {"w": param(4, 16)},
    ),
    "dynamic convolution": whole(
        dynamic, lambda: {"att": nn.Linear(16, 4), "bank": param(4, 8, 16, 3, 3)}, broken=_EXAMPLE
    ),
    # convolutions
    "grouped": middle(
        lambda n, h: n.h(n.g(h)), lambda: {"g": conv(16, 16, groups=4), "h": conv(16, 16, groups=2)}
    ),
    "depthwise, two outputs each": middle(
        lambda n, h: n.h(n.g(h)),
        lambda: {"g": conv(16, 32, groups=16), "h": conv(32, 16, groups=16)},
    ),
    "transposed, grouped": middle(
        lambda n, h: n.g(h), lambda: {"g": nn.ConvTranspose2d(16, 16, 3, padding=1, groups=4)}
    ),
    "padding modes": middle(
        lambda n, h: n.h(n.g(h)),
        lambda: {
            "g": nn.Conv2d(16, 16, 3, padding=2, dilation=2, padding_mode="circular"),
            "h": nn.Conv2d(16, 16, (3, 1), padding=(1, 0), padding_mode="reflect"),
        },
    ),
    "width 1": middle(lambda n, h: n.h(n.g(h)), lambda: {"g": conv(16, 1), "h": conv(1, 16)}),
    "one weight for two": middle(
        lambda n, h: n.k(h) + F.conv2d(h.sin(), n.k.weight, padding=1), lambda: {"k": conv(16, 16)}
    ),
    "weight used transposed": middle(
        lambda n, h: F.conv_transpose2d(n.k(h), n.k.weight, padding=1), lambda: {"k": conv(16, 12)}
    ),
    "standardised weights": middle(
        lambda n, h: n.k(h), lambda: {"k": StandardisedConv(16, 16, 3, padding=1)}
    ),
    "weights scaled by fan-in": middle(
        lambda n, h: n.k(h), lambda: {"k": EqualisedConv(16, 16, 3, padding=1)}
    ),
    # products
    "einsum": middle(
        lambda n, h: torch.einsum("bchw,c,cd->bdhw", h, n.v, n.w),
        lambda: {"v": param(16), "w": param(16, 16)},
    ),
    "tensordot": middle(
        lambda n, h: torch.tensordot(h, n.w, dims=([1], [0])).permute(0, 3, 1, 2),
        lambda: {"w": param(16, 16)},
    ),
    "baddbmm": whole(
        lambda n, x: torch.baddbmm(
            n.s,
            n.a(x).flatten(2).transpose(1, 2),
            n.w.expand(x.shape[0], -1, -1),
            beta=0.5,
            alpha=2,
        ),
        lambda: {"s": param(1, 1, 4), "w": param(16, 4)},
    ),
    "outer product": whole(
        lambda n, x: n.l(
            (n.a(x).mean((2, 3))[:, :, None] * n.b(n.a(x)).mean((2, 3))[:, None]).flatten(1)
        ),
        lambda: {"l": nn.Linear(128, 4)},
    ),
    "kronecker weight": whole(
        lambda n, x: F.linear(n.a(x).mean((2, 3)), torch.kron(n.p, n.q)),
        lambda: {"p": param(2, 4), "q": param(2, 4)},
    ),
    # norms
    "rms norm by hand": middle(lambda n, h: h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-6)),
    "divided by the number of channels": middle(
        lambda n, h: h * torch.rsqrt(h.pow(2).sum(1, keepdim=True) / h.size(1) + 1e-6)
    ),
    "layer norm of a permuted value": middle(
        lambda n, h: n.n(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), lambda: {"n": nn.LayerNorm(16)}
    ),
    "layer norm used twice": middle(
        lambda n, h: n.n(n.n(h.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2),
        lambda: {"n": nn.LayerNorm(16)},
    ),
    "functional layer norm": middle(
        lambda n, h: F.layer_norm(h.permute(0, 2, 3, 1), (h.shape[1],), n.g).permute(0, 3, 1, 2),
        lambda: {"g": param(16)},
    ),
    "layer norm over channels and pixels": middle(lambda n, h: F.layer_norm(h, h.shape[1:])),
    "group norm": middle(lambda n, h: n.n(h), lambda: {"n": nn.GroupNorm(4, 16)}),
    "instance norm": middle(
        lambda n, h: n.n(h),
        lambda: {"n": nn.InstanceNorm2d(16, affine=True, track_running_stats=True)},
    ),
    "batch norm without state": middle(
        lambda n, h: n.n(h),
        lambda: {"n": nn.BatchNorm2d(16, affine=False, track_running_stats=False)},
    ),
    "functional batch norm": middle(
        lambda n, h: F.batch_norm(h, n.m, n.v, training=n.training),
        lambda: {"m": torch.zeros(16), "v": torch.ones(16)},
    ),
    "local response norm": middle(lambda n, h: n.n(h), lambda: {"n": nn.LocalResponseNorm(3)}),
    # broadcasting and parameters in arithmetic
    "layer scale": middle(
        lambda n, h: h + n.g * n.k(h), lambda: {"g": param(16, 1, 1), "k": conv(16, 16)}
    ),
    "parameters of several shapes": middle(
        lambda n, h: h * n.p + n.q.view(-1, 1, 1) + n.q.sum() + n.p.mean(),
        lambda: {"p": param(1, 16, 1, 1), "q": param(16)},
    ),
    "parameter list": middle(
        lambda n, h: h * n.g[0].view(-1, 1, 1) + n.g[1][:, None, None],
        lambda: {"g": nn.ParameterList([torch.rand(16), torch.rand(16)])},
    ),
    "buffers": middle(
        lambda n, h: (h - n.m[None, :, None, None]).masked_fill(n.k.view(1, -1, 1, 1), 0.0),
        lambda: {"m": torch.rand(16), "k": torch.arange(16) > 3},
    ),
    "prelu": middle(lambda n, h: F.prelu(n.p(h), n.q), lambda: {"p": nn.PReLU(16), "q": param(16)}),
    "statistics of samples": middle(lambda n, h: h / (h.sum((1, 2, 3), keepdim=True) + 100)),
    "sum over channels": middle(lambda n, h: h / (h.pow(2).sum(1, keepdim=True) + 1).sqrt()),
    "where, clamp, lerp": middle(
        lambda n, h: (
            torch.where(h > 0, h, h.neg()).clamp(-1, 1).maximum(n.k(h)).lerp(h, 0.3).addcmul(h, h)
        ),
        lambda: {"k": conv(16, 16)},
    ),
    "broadcast explicitly": middle(
        lambda n, h: h * torch.broadcast_tensors(h, n.k(h))[1], lambda: {"k": conv(16, 1, 1)}
    ),
    "stack and reduce": middle(
        lambda n, h: torch.stack([h, n.k(h)]).amax(0) + torch.stack([h, n.k(h)], -1).mean(-1),
        lambda: {"k": conv(16, 16, 1)},
    ),
    # movement
    "uneven split": middle(
        lambda n, h: torch.cat([h.split([3, 5, 8], 1)[i] for i in (2, 0, 1)], 1)
    ),
    "split with a rest": middle(
        lambda n, h: torch.cat([h.split(5, 1)[i] for i in (3, 1, 0, 2)], 1)
    ),
    "unbind and stack": middle(lambda n, h: torch.stack(h.unbind(1)[::-1], 1)),
    "tile": middle(lambda n, h: n.k(h).tile(1, 2, 1, 1) + h, lambda: {"k": conv(16, 8)}),
    "movedim": middle(
        lambda n, h: torch.movedim(n.l(torch.movedim(h, 1, -1)), -1, 1),
        lambda: {"l": nn.Linear(16, 16)},
    ),
    "flip and roll": middle(lambda n, h: h.flip(1).roll((1, 2), (2, 3))),
    "unflatten": middle(
        lambda n, h: torch.unflatten(input=h, dim=-3, sizes=(4, -1)).sin().flatten(1, 2)
    ),
    "maxout": whole(
        lambda n, x: n.out(n.a(x).view(x.shape[0], 8, 2, x.shape[2], x.shape[3]).amax(2))
    ),
    "gated linear unit": whole(lambda n, x: n.out(F.glu(n.a(x), 1))),
    "pixel shuffle and back": middle(lambda n, h: F.pixel_unshuffle(F.pixel_shuffle(h, 2), 2)),
    "channels taken by number": middle(
        lambda n, h: n.k(h[:, n.at]), lambda: {"at": torch.arange(0, 16, 2), "k": conv(8, 16)}
    ),
    "padded channels": middle(
        lambda n, h: n.k(F.pad(h, (0, 0, 0, 0, 2, 2), value=1.0)), lambda: {"k": conv(20, 16, 1)}
    ),
    "look-ups by rank": middle(
        lambda n, h: h.gather(1, h.argsort(1)) + h.cumsum(1) + h * (h >= h.topk(4, 1)[0][:, -1:])
    ),
    "scatter": middle(
        lambda n, h: torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), 1.0) * h
    ),
    "fourier": middle(
        lambda n, h: torch.fft.ifft2(torch.fft.fft2(h) * n.w).real, lambda: {"w": param(16, 1, 1)}
    ),
    "grid sample": middle(
        lambda n, h: F.grid_sample(h, n.k(h).permute(0, 2, 3, 1).tanh(), align_corners=False),
        lambda: {"k": conv(16, 2)},
    ),
    # in place
    "read before and after a write": whole(read_before_and_after),
    "copied into": middle(lambda n, h: h.clone().copy_(h.sin()) + h),
    "mode in the graph": middle(
        lambda n, h: n.k(h) if n.training else n.k(h) * 2, lambda: {"k": conv(16, 16)}
    ),
    # outputs
    "named tuple": whole(lambda n, x: Pair(n.out(n.b(n.a(x))), x)),
    "features and a width": whole(
        lambda n, x: {
            "y": n.out(n.b(n.a(x))),
            "list": [n.b(n.a(x)), None],
            "width": n.a(x).shape[1],
        }
    ),
    # what is wrong today
    "number of elements": middle(lambda n, h: h / h[:1].numel()),
    "channels inside a function": middle(wrapped_scale),
    "padding inside a function": middle(wrapped_pad, lambda: {"k": conv(20, 16, 1)}),
    "leaf that differs in training": middle(
        lambda n, h: n.t(h), lambda: {"t": CentredInTraining()}
    ),
    "write through a slice": middle(written_through(lambda h: h[:, :4])),
    "write through a permutation": middle(written_through(lambda h: h.permute(0, 2, 3, 1))),
    "write through a chunk": middle(written_through(lambda h: h.chunk(2, 1)[1])),
    "write through data": middle(written_through(lambda h: h.data)),
    "write to out": middle(written_out),
    "batch and channels in one axis": middle(
        lambda n, h: h.reshape(h.shape[0] * h.shape[1], -1).softmax(1).view(h.shape)
    ),
    "channels and rows in one axis": middle(
        lambda n, h: (
            h.reshape(h.shape[0], h.shape[1] * h.shape[2], h.shape[3]).softmax(2).view(h.shape)
        )
    ),
    "expand_as": beside(lambda z, h: z.expand_as(h)),
    "expand to a size": beside(lambda z, h: z.expand(h.size())),
    "reshape_as": beside(lambda z, h: z.flatten(2).reshape_as(h), 16),
    "new_ones": middle(lambda n, h: h * h.new_ones(h.shape[0], h.shape[1], 1, 1)),
    "nn.Unflatten": middle(
        lambda n, h: n.u(h).sin().flatten(1, 2), lambda: {"u": nn.Unflatten(1, (4, 4))}
    ),
    "nn.ConstantPad3d": middle(
        lambda n, h: n.k(n.p(h)),
        lambda: {"p": nn.ConstantPad3d((0, 0, 0, 0, 0, 4), 0.0), "k": conv(20, 16, 1)},
    ),
    "negative padding": middle(
        lambda n, h: n.k(F.pad(h, (0, 0, 0, 0, -2, -2))), lambda: {"k": conv(12, 16, 1)}
    ),
    "chunk by keywords": middle(
        lambda n, h: torch.cat(torch.chunk(input=h, chunks=2, dim=1)[::-1], 1)
    ),
    "narrow from the end": middle(
        lambda n, h: n.k(h.narrow(1, -8, 8)), lambda: {"k": conv(8, 16, 1)}
    ),
    "tensor_split": middle(lambda n, h: torch.cat(h.tensor_split([6], 1)[::-1], 1)),
    "hsplit": middle(lambda n, h: torch.cat(torch.hsplit(h, 2)[::-1], 1)),
    "repeat_interleave": middle(
        lambda n, h: n.k(h.repeat_interleave(2, 1)), lambda: {"k": conv(32, 16, 1)}
    ),
    "as_strided": middle(
        lambda n, h: h.contiguous().as_strided((h.shape[0], 16, 8, 8), (1024, 64, 8, 1)),
        other_sizes=False,
    ),
    "matrix times vector": whole(lambda n, x: n.a(x).mean((2, 3)) @ n.v, lambda: {"v": param(16)}),
}
