"""Small models in the ways people write them: one row per mechanism, each checked by test_user_models.py.

Most rows are the middle of one small network: ``y = out(relu(b(middle(net, a(x)))))`` with 3 -> 16 -> 8 -> 4
channels. What cannot be right yet is marked with the reason.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["CASES", "Case", "Net", "conv"]

Pair = namedtuple("Pair", "a b")


def conv(i: int, o: int, k: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **more)


class Net(nn.Module):
    """Its forward is a function of the network and its input."""

    def __init__(self, forward: Callable[..., Any], parts: dict[str, Any]) -> None:
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), conv(16, 8), nn.Conv2d(8, 4, 1)
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.__dict__["_forward"] = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 3, 8, 8)
    other_sizes: bool = True
    broken: str = ""


def whole(forward: Callable[..., Any], parts: Callable[[], dict[str, Any]] = dict, **more: Any) -> Case:
    return Case(lambda: Net(forward, parts()), **more)


def middle(function: Callable[..., Any], parts: Callable[[], dict[str, Any]] = dict, **more: Any) -> Case:
    return whole(lambda n, x: n.out(F.relu(n.b(function(n, n.a(x))))), parts, **more)


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape))


@fx.wrap
def over_channels(h: Tensor) -> Tensor:
    return h / h.shape[1]


@fx.wrap
def padded(h: Tensor) -> Tensor:
    return F.pad(h, (0, 0, 0, 0, 0, 4))


class CentredInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True) if self.training else x


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


class EqualisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * (2 / (self.weight.shape[1] * 9)) ** 0.5, self.bias, padding=1)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = conv(3, 8), nn.Conv2d(20, 4, 1)
        self.layers = nn.ModuleList(conv(8 + 4 * i, 4) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        found = [self.a(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            found.append(layer(F.relu(norm(torch.cat(found, 1)))))
        return self.out(torch.cat(found, 1))


class Fused(nn.Module):
    """Two resolutions that exchange, as in HRNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 8), conv(3, 12, stride=2)
        self.ab, self.ba = conv(8, 12, stride=2), conv(12, 8, 1)
        self.out_a, self.out_b = conv(8, 4), conv(12, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.a(x), self.b(x)
        for _ in range(2):
            a, b = F.relu(a + F.interpolate(self.ba(b), scale_factor=2)), F.relu(b + self.ab(a))
        return self.out_a(a), self.out_b(b)


class Unet(nn.Module):
    def __init__(self, crop: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = conv(3, 8), conv(8, 16), conv(16, 8), conv(8, 2, 1)
        self.up, self.crop = nn.ConvTranspose2d(16, 8, 2, 2), crop

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        up = self.up(self.b(F.max_pool2d(a, 2)))
        if self.crop:
            a = a[:, :, : up.size(2), : up.size(3)]
        else:
            h, w = a.shape[2] - up.shape[2], a.shape[3] - up.shape[3]
            up = F.pad(up, [w // 2, w - w // 2, h // 2, h - h // 2])
        return self.out(self.c(torch.cat([a, up], dim=1)))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.n1, self.n2, self.out = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.LayerNorm(16), nn.Linear(16, 5)
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = h + self.tokens(self.n1(h).transpose(1, 2)).transpose(1, 2)
        return self.out((h + self.channels(self.n2(h))).mean(1))


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gru = nn.Conv1d(3, 16, 3, padding=1), nn.Conv1d(16, 8, 1), nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.b(self.a(x)).transpose(1, 2))[0]


def selective(n: nn.Module, h: Tensor) -> Tensor:
    both = torch.stack([n.k1(h), n.k2(h)], 1)
    z = F.relu(n.fc(both.sum(1).mean((2, 3))))
    return (both * n.to(z).view(-1, 2, 16).softmax(1)[..., None, None]).sum(1)


def global_context(n: nn.Module, h: Tensor) -> Tensor:
    b, c, height, width = h.shape
    weight = n.m(h).view(b, 1, -1).softmax(-1).unsqueeze(-1)
    return h + n.t(torch.matmul(h.view(b, c, height * width).unsqueeze(1), weight).view(b, c, 1, 1))


def non_local(n: nn.Module, h: Tensor) -> Tensor:
    t, p, g = n.t(h).flatten(2), n.p(h).flatten(2), n.g(h).flatten(2)
    weight = (t.transpose(1, 2) @ p / t.shape[1] ** 0.5).softmax(-1)
    return h + n.o((g @ weight.transpose(1, 2)).view(h.shape[0], 8, h.shape[2], h.shape[3]))


def own_attention(n: nn.Module, h: Tensor) -> Tensor:
    b, c, height, width = h.shape
    q, k, v = n.qkv(h).reshape(b, 3, 4, c // 4, height * width).unbind(1)
    weight = ((q.transpose(-2, -1) @ k) * (c // 4) ** -0.5).softmax(-1)
    return n.p((v @ weight.transpose(-2, -1)).reshape(b, c, height, width))


def windows(n: nn.Module, h: Tensor) -> Tensor:
    b, c, y, x = h.shape
    cut = h.view(b, c, y // 4, 4, x // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c).softmax(1)
    return cut.view(b, y // 4, x // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, y, x)


def shuffled(n: nn.Module, h: Tensor) -> Tensor:
    left, right = h.chunk(2, 1)
    h = torch.cat([left, n.k(right)], 1)
    b, c, y, x = h.size()
    return h.view(b, 2, c // 2, y, x).transpose(1, 2).contiguous().view(b, -1, y, x)


def dynamic(n: nn.Module, x: Tensor) -> Tensor:
    h = n.a(x)
    b, c, height, width = h.shape
    weight = (n.att(h.mean((2, 3))).softmax(1) @ n.bank.view(4, -1)).view(b * 8, c, 3, 3)
    return n.out(F.conv2d(h.view(1, -1, height, width), weight, padding=1, groups=b).view(b, 8, height, width))


def read_before_and_after(n: nn.Module, x: Tensor) -> Tensor:
    h = n.a(x)
    early = n.b(h)
    h += 1.0
    return n.out(early + n.b(h))


def written_through(view: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    def function(n: nn.Module, h: Tensor) -> Tensor:
        view(h).add_(1.0)
        return h

    return function


def written_out(n: nn.Module, h: Tensor) -> Tensor:
    result = torch.zeros_like(h)
    torch.add(h, 1.0, out=result)
    return result


def beside(function: Callable[..., Tensor], width: int = 1) -> Case:
    """A second branch z, whose shape is written by looking at the first one."""
    return whole(
        lambda n, x: n.out(n.b(n.a(x)) + n.c(function(n.z(x), n.a(x)))),
        lambda: {"z": conv(3, width, 1), "c": conv(16, 8, 1)},
        broken="the shape of one value is taken from another, which is pruned differently",
    )


_IN_PLACE = "the gate stands before the write through a view"
_OPAQUE = "code inside a hook, a function or a leaf that uses the number of channels"
_EXAMPLE = "a size is written as it was for the example's batch or image"
_SPELLING = "resize_literals does not know this spelling"

CASES: dict[str, Case] = {
    # blocks of known architectures
    "dense block": Case(Dense),
    "two resolutions": Case(Fused),
    "unet, padded": Case(lambda: Unet(False), (2, 3, 9, 9)),
    "unet, cropped": Case(lambda: Unet(True), (2, 3, 9, 9)),
    "mixer": Case(Mixer, other_sizes=False),
    "gru": Case(Gru, (2, 3, 10)),
    "squeeze and excite": middle(lambda n, h: h * n.e(F.relu(n.s(h.mean((2, 3))))).sigmoid()[:, :, None, None], lambda: {"s": nn.Linear(16, 4), "e": nn.Linear(4, 16)}),
    "efficient channel attention": middle(lambda n, h: h * n.e(h.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None].sigmoid().expand_as(h), lambda: {"e": nn.Conv1d(1, 1, 3, padding=1)}),
    "spatial attention": middle(lambda n, h: h * n.s(torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], 1)).sigmoid(), lambda: {"s": conv(2, 1, 7)}),
    "selective kernels": middle(selective, lambda: {"k1": conv(16, 16, 1), "k2": conv(16, 16), "fc": nn.Linear(16, 8), "to": nn.Linear(8, 32)}),
    "global context": middle(global_context, lambda: {"m": conv(16, 1, 1), "t": nn.Sequential(conv(16, 4, 1), nn.LayerNorm([4, 1, 1]), nn.ReLU(), conv(4, 16, 1))}),
    "non-local": middle(non_local, lambda: {k: conv(16, 8, 1) for k in "tpg"} | {"o": conv(8, 16, 1)}),
    "attention by hand": middle(own_attention, lambda: {"qkv": conv(16, 48, 1), "p": conv(16, 16, 1)}),
    "windows": middle(windows),
    "channel shuffle": middle(shuffled, lambda: {"k": conv(8, 8)}),
    "ghost": middle(lambda n, h: torch.cat([n.p(h), n.c(n.p(h))], 1)[:, :16], lambda: {"p": conv(16, 10, 1), "c": conv(10, 10, groups=10)}),
    "temporal shift": middle(lambda n, h: torch.cat([h[:, :4].roll(1, 0), h[:, 4:8].roll(-1, 0), h[:, 8:]], 1)),
    "axial convolution": middle(lambda n, h: n.k(h.permute(0, 2, 1, 3).reshape(h.shape[0] * h.shape[2], h.shape[1], h.shape[3])).view(h.shape[0], h.shape[2], 16, h.shape[3]).transpose(1, 2), lambda: {"k": nn.Conv1d(16, 16, 3, padding=1)}),
    "bilinear pooling": whole(lambda n, x: n.l(torch.bmm(n.a(x).flatten(2), n.a(x).flatten(2).transpose(1, 2)).flatten(1)), lambda: {"l": nn.Linear(256, 4)}),
    "cosine classifier": whole(lambda n, x: F.linear(F.normalize(n.a(x).mean((2, 3))), F.normalize(n.w)), lambda: {"w": param(4, 16)}),
    "dynamic convolution": whole(dynamic, lambda: {"att": nn.Linear(16, 4), "bank": param(4, 8, 16, 3, 3)}, broken=_EXAMPLE),
    # convolutions
    "grouped": middle(lambda n, h: n.h(n.g(h)), lambda: {"g": conv(16, 16, groups=4), "h": conv(16, 16, groups=2)}),
    "depthwise, two outputs each": middle(lambda n, h: n.h(n.g(h)), lambda: {"g": conv(16, 32, groups=16), "h": conv(32, 16, groups=16)}),
    "transposed, grouped": middle(lambda n, h: n.g(h), lambda: {"g": nn.ConvTranspose2d(16, 16, 3, padding=1, groups=4)}),
    "padding modes": middle(lambda n, h: n.h(n.g(h)), lambda: {"g": nn.Conv2d(16, 16, 3, padding=2, dilation=2, padding_mode="circular"), "h": nn.Conv2d(16, 16, (3, 1), padding=(1, 0), padding_mode="reflect")}),
    "width 1": middle(lambda n, h: n.h(n.g(h)), lambda: {"g": conv(16, 1), "h": conv(1, 16)}),
    "one weight for two": middle(lambda n, h: n.k(h) + F.conv2d(h.sin(), n.k.weight, padding=1), lambda: {"k": conv(16, 16)}),
    "weight used transposed": middle(lambda n, h: F.conv_transpose2d(n.k(h), n.k.weight, padding=1), lambda: {"k": conv(16, 12)}),
    "standardised weights": middle(lambda n, h: n.k(h), lambda: {"k": StandardisedConv(16, 16, 3, padding=1)}),
    "weights scaled by fan-in": middle(lambda n, h: n.k(h), lambda: {"k": EqualisedConv(16, 16, 3, padding=1)}),
    # products
    "einsum": middle(lambda n, h: torch.einsum("bchw,c,cd->bdhw", h, n.v, n.w), lambda: {"v": param(16), "w": param(16, 16)}),
    "tensordot": middle(lambda n, h: torch.tensordot(h, n.w, dims=([1], [0])).permute(0, 3, 1, 2), lambda: {"w": param(16, 16)}),
    "baddbmm": whole(lambda n, x: torch.baddbmm(n.s, n.a(x).flatten(2).transpose(1, 2), n.w.expand(x.shape[0], -1, -1), beta=0.5, alpha=2), lambda: {"s": param(1, 1, 4), "w": param(16, 4)}),
    "outer product": whole(lambda n, x: n.l((n.a(x).mean((2, 3))[:, :, None] * n.b(n.a(x)).mean((2, 3))[:, None]).flatten(1)), lambda: {"l": nn.Linear(128, 4)}),
    "kronecker weight": whole(lambda n, x: F.linear(n.a(x).mean((2, 3)), torch.kron(n.p, n.q)), lambda: {"p": param(2, 4), "q": param(2, 4)}),
    # norms
    "rms norm by hand": middle(lambda n, h: h * torch.rsqrt(h.pow(2).mean(1, keepdim=True) + 1e-6)),
    "divided by the number of channels": middle(lambda n, h: h * torch.rsqrt(h.pow(2).sum(1, keepdim=True) / h.size(1) + 1e-6)),
    "layer norm of a permuted value": middle(lambda n, h: n.n(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), lambda: {"n": nn.LayerNorm(16)}),
    "layer norm used twice": middle(lambda n, h: n.n(n.n(h.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2), lambda: {"n": nn.LayerNorm(16)}),
    "functional layer norm": middle(lambda n, h: F.layer_norm(h.permute(0, 2, 3, 1), (h.shape[1],), n.g).permute(0, 3, 1, 2), lambda: {"g": param(16)}),
    "layer norm over channels and pixels": middle(lambda n, h: F.layer_norm(h, h.shape[1:]), broken=_EXAMPLE),
    "group norm": middle(lambda n, h: n.n(h), lambda: {"n": nn.GroupNorm(4, 16)}),
    "instance norm": middle(lambda n, h: n.n(h), lambda: {"n": nn.InstanceNorm2d(16, affine=True, track_running_stats=True)}),
    "batch norm without state": middle(lambda n, h: n.n(h), lambda: {"n": nn.BatchNorm2d(16, affine=False, track_running_stats=False)}),
    "functional batch norm": middle(lambda n, h: F.batch_norm(h, n.m, n.v, training=n.training), lambda: {"m": torch.zeros(16), "v": torch.ones(16)}),
    "local response norm": middle(lambda n, h: n.n(h), lambda: {"n": nn.LocalResponseNorm(3)}),
    # broadcasting and parameters in arithmetic
    "layer scale": middle(lambda n, h: h + n.g * n.k(h), lambda: {"g": param(16, 1, 1), "k": conv(16, 16)}),
    "parameters of several shapes": middle(lambda n, h: h * n.p + n.q.view(-1, 1, 1) + n.q.sum() + n.p.mean(), lambda: {"p": param(1, 16, 1, 1), "q": param(16)}),
    "parameter list": middle(lambda n, h: h * n.g[0].view(-1, 1, 1) + n.g[1][:, None, None], lambda: {"g": nn.ParameterList([torch.rand(16), torch.rand(16)])}),
    "buffers": middle(lambda n, h: (h - n.m[None, :, None, None]).masked_fill(n.k.view(1, -1, 1, 1), 0.0), lambda: {"m": torch.rand(16), "k": torch.arange(16) > 3}),
    "prelu": middle(lambda n, h: F.prelu(n.p(h), n.q), lambda: {"p": nn.PReLU(16), "q": param(16)}),
    "statistics of samples": middle(lambda n, h: h / (h.sum((1, 2, 3), keepdim=True) + 100)),
    "sum over channels": middle(lambda n, h: h / (h.pow(2).sum(1, keepdim=True) + 1).sqrt()),
    "where, clamp, lerp": middle(lambda n, h: torch.where(h > 0, h, h.neg()).clamp(-1, 1).maximum(n.k(h)).lerp(h, 0.3).addcmul(h, h), lambda: {"k": conv(16, 16)}),
    "broadcast explicitly": middle(lambda n, h: h * torch.broadcast_tensors(h, n.k(h))[1], lambda: {"k": conv(16, 1, 1)}),
    "stack and reduce": middle(lambda n, h: torch.stack([h, n.k(h)]).amax(0) + torch.stack([h, n.k(h)], -1).mean(-1), lambda: {"k": conv(16, 16, 1)}),
    # movement
    "uneven split": middle(lambda n, h: torch.cat([h.split([3, 5, 8], 1)[i] for i in (2, 0, 1)], 1)),
    "split with a rest": middle(lambda n, h: torch.cat([h.split(5, 1)[i] for i in (3, 1, 0, 2)], 1)),
    "unbind and stack": middle(lambda n, h: torch.stack(h.unbind(1)[::-1], 1)),
    "tile": middle(lambda n, h: n.k(h).tile(1, 2, 1, 1) + h, lambda: {"k": conv(16, 8)}),
    "movedim": middle(lambda n, h: torch.movedim(n.l(torch.movedim(h, 1, -1)), -1, 1), lambda: {"l": nn.Linear(16, 16)}),
    "flip and roll": middle(lambda n, h: h.flip(1).roll((1, 2), (2, 3))),
    "unflatten": middle(lambda n, h: torch.unflatten(input=h, dim=-3, sizes=(4, -1)).sin().flatten(1, 2)),
    "maxout": whole(lambda n, x: n.out(n.a(x).view(x.shape[0], 8, 2, x.shape[2], x.shape[3]).amax(2))),
    "gated linear unit": whole(lambda n, x: n.out(F.glu(n.a(x), 1))),
    "pixel shuffle and back": middle(lambda n, h: F.pixel_unshuffle(F.pixel_shuffle(h, 2), 2)),
    "channels taken by number": middle(lambda n, h: n.k(h[:, n.at]), lambda: {"at": torch.arange(0, 16, 2), "k": conv(8, 16)}),
    "padded channels": middle(lambda n, h: n.k(F.pad(h, (0, 0, 0, 0, 2, 2), value=1.0)), lambda: {"k": conv(20, 16, 1)}),
    "look-ups by rank": middle(lambda n, h: h.gather(1, h.argsort(1)) + h.cumsum(1) + h * (h >= h.topk(4, 1)[0][:, -1:])),
    "scatter": middle(lambda n, h: torch.zeros_like(h).scatter(1, h.argmax(1, keepdim=True), 1.0) * h),
    "fourier": middle(lambda n, h: torch.fft.ifft2(torch.fft.fft2(h) * n.w).real, lambda: {"w": param(16, 1, 1)}),
    "grid sample": middle(lambda n, h: F.grid_sample(h, n.k(h).permute(0, 2, 3, 1).tanh(), align_corners=False), lambda: {"k": conv(16, 2)}),
    # in place
    "read before and after a write": whole(read_before_and_after),
    "copied into": middle(lambda n, h: h.clone().copy_(h.sin()) + h),
    "mode in the graph": middle(lambda n, h: n.k(h) if n.training else n.k(h) * 2, lambda: {"k": conv(16, 16)}),
    # outputs
    "named tuple": whole(lambda n, x: Pair(n.out(n.b(n.a(x))), x)),
    "features and a width": whole(lambda n, x: {"y": n.out(n.b(n.a(x))), "list": [n.b(n.a(x)), None], "width": n.a(x).shape[1]}),
    # what is wrong today
    "number of elements": middle(lambda n, h: h / h[:1].numel(), broken="numel() is no size that is written down"),
    "channels inside a function": middle(lambda n, h: over_channels(h), broken=_OPAQUE),
    "padding inside a function": middle(lambda n, h: n.k(padded(h)), lambda: {"k": conv(20, 16, 1)}, broken=_OPAQUE),
    "leaf that differs in training": middle(lambda n, h: n.t(h), lambda: {"t": CentredInTraining()}, broken="leaves are analysed in evaluation mode only"),
    "write through a slice": middle(written_through(lambda h: h[:, :4]), broken=_IN_PLACE),
    "write through a permutation": middle(written_through(lambda h: h.permute(0, 2, 3, 1)), broken=_IN_PLACE),
    "write through a chunk": middle(written_through(lambda h: h.chunk(2, 1)[1]), broken=_IN_PLACE),
    "write through data": middle(written_through(lambda h: h.data), broken=_IN_PLACE),
    "write to out": middle(written_out, broken=_IN_PLACE),
    "batch and channels in one axis": middle(lambda n, h: h.reshape(h.shape[0] * h.shape[1], -1).softmax(1).view(h.shape), broken=_EXAMPLE),
    "channels and rows in one axis": middle(lambda n, h: h.reshape(h.shape[0], h.shape[1] * h.shape[2], h.shape[3]).softmax(2).view(h.shape), broken=_EXAMPLE),
    "expand_as": beside(lambda z, h: z.expand_as(h)),
    "expand to a size": beside(lambda z, h: z.expand(h.size())),
    "reshape_as": beside(lambda z, h: z.flatten(2).reshape_as(h), 16),
    "new_ones": middle(lambda n, h: h * h.new_ones(h.shape[0], h.shape[1], 1, 1), broken=_SPELLING),
    "nn.Unflatten": middle(lambda n, h: n.u(h).sin().flatten(1, 2), lambda: {"u": nn.Unflatten(1, (4, 4))}, broken="sizes in a module"),
    "nn.ConstantPad3d": middle(lambda n, h: n.k(n.p(h)), lambda: {"p": nn.ConstantPad3d((0, 0, 0, 0, 0, 4), 0.0), "k": conv(20, 16, 1)}, broken="sizes in a module"),
    "negative padding": middle(lambda n, h: n.k(F.pad(h, (0, 0, 0, 0, -2, -2))), lambda: {"k": conv(12, 16, 1)}, broken="_pad keeps negative widths"),
    "chunk by keywords": middle(lambda n, h: torch.cat(torch.chunk(input=h, chunks=2, dim=1)[::-1], 1), broken=_SPELLING),
    "narrow from the end": middle(lambda n, h: n.k(h.narrow(1, -8, 8)), lambda: {"k": conv(8, 16, 1)}, broken="_narrow: a negative start"),
    "tensor_split": middle(lambda n, h: torch.cat(h.tensor_split([6], 1)[::-1], 1), broken=_SPELLING),
    "hsplit": middle(lambda n, h: torch.cat(torch.hsplit(h, 2)[::-1], 1), broken=_SPELLING),
    "repeat_interleave": middle(lambda n, h: n.k(h.repeat_interleave(2, 1)), lambda: {"k": conv(32, 16, 1)}, broken="expand inside torch's own function makes prunable copies"),
    "as_strided": middle(lambda n, h: h.contiguous().as_strided((h.shape[0], 16, 8, 8), (1024, 64, 8, 1)), broken="as_strided of the same shape keeps its numbers", other_sizes=False),
    "shape of a hidden value": whole(lambda n, x: (n.out(n.b(n.a(x))), n.a(x).shape), broken="a whole torch.Size is not written down"),
    "matrix times vector": whole(lambda n, x: n.a(x).mean((2, 3)) @ n.v, lambda: {"v": param(16)}, broken="FlopCounterMode does not count aten::mv"),
}
