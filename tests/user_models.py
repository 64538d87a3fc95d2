"""What the rows of user_cases.py are made of: small modules and functions in the ways people write them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

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


def whole(
    forward: Callable[..., Any], parts: Callable[[], dict[str, Any]] = dict, **more: Any
) -> Case:
    return Case(lambda: Net(forward, parts()), **more)


def middle(
    function: Callable[..., Any], parts: Callable[[], dict[str, Any]] = dict, **more: Any
) -> Case:
    return whole(lambda n, x: n.out(F.relu(n.b(function(n, n.a(x))))), parts, **more)


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape))


@fx.wrap
def over_channels(h: Tensor) -> Tensor:
    return h / h.shape[1]


@fx.wrap
def padded(h: Tensor) -> Tensor:
    return F.pad(h, (0, 0, 0, 0, 0, 4))


def wrapped_scale(n: nn.Module, h: Tensor) -> Tensor:
    return over_channels(h)  # fx.wrap is seen in this file only


def wrapped_pad(n: nn.Module, h: Tensor) -> Tensor:
    return n.k(padded(h))


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
        return F.conv2d(
            x, self.weight * (2 / (self.weight.shape[1] * 9)) ** 0.5, self.bias, padding=1
        )


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
        self.patch, self.n1, self.n2, self.out = (
            nn.Conv2d(3, 16, 4, 4),
            nn.LayerNorm(16),
            nn.LayerNorm(16),
            nn.Linear(16, 5),
        )
        self.tokens = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.channels = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = h + self.tokens(self.n1(h).transpose(1, 2)).transpose(1, 2)
        return self.out((h + self.channels(self.n2(h))).mean(1))


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.gru = (
            nn.Conv1d(3, 16, 3, padding=1),
            nn.Conv1d(16, 8, 1),
            nn.GRU(8, 8, batch_first=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(self.b(self.a(x)).transpose(1, 2))[0]


def selective(n: nn.Module, h: Tensor) -> Tensor:
    both = torch.stack([n.k1(h), n.k2(h)], 1)
    z = F.relu(n.fc(both.sum(1).mean((2, 3))))
    return (both * n.e(z).view(-1, 2, 16).softmax(1)[..., None, None]).sum(1)


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
    return n.out(
        F.conv2d(h.view(1, -1, height, width), weight, padding=1, groups=b).view(
            b, 8, height, width
        )
    )


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
