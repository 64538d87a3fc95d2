"""Small networks with branches, each for one thing that can go wrong when an operand is removed."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from small_nets import wake
from torch import Tensor, nn

__all__ = ["NONE", "SPELLINGS", "TRAPS", "Chained", "Counted", "Nested", "Net", "conv"]


def conv(a: int = 4, b: int = 4) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1)


class Net(nn.Module):
    """A stem, what `body` does with it and the layers given, a head."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.stem, self.head = conv(3), conv(4, 5)
        for name, layer in layers.items():
            self.add_module(name, layer)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.stem(x)))


class Counted(nn.Module):
    """Blocks of two convolutions with BatchNorm and an activation in place, as in ResNet."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                conv(4, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), conv(6), nn.BatchNorm2d(4)
            )
            for _ in range(blocks)
        )
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            out = block(x)
            out += x
            x = self.relu(out)
        return self.head(x.mean((2, 3)))


class Nested(nn.Module):
    """A block whose branch holds a block with a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3), conv(4, 5)
        self.first, self.inner, self.last = conv(), conv(), conv()
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.first(x).relu()
        y = y + self.inner(y).tanh()
        return self.head(x + self.last(y))


class Chained(nn.Module):
    """Three operands in one sum, after a layer that only two of them read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3), conv(4, 5)
        self.shared, self.left, self.right = conv(4, 6), conv(6), nn.Conv2d(6, 4, 1)
        wake(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.shared(x).relu()
        return self.head(x + self.left(y) + self.right(y))


def _adds(add: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    return lambda net, x: F.relu(add(net.one(x), x))


SPELLINGS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "operator": _adds(operator.add),
    "swapped": lambda net, x: F.relu(x + net.one(x)),
    "in place": _adds(operator.iadd),
    "function": _adds(torch.add),
    "keywords": lambda net, x: torch.add(input=net.one(x), other=x, alpha=1),
    "method": lambda net, x: net.one(x).add(x),
    "method in place": lambda net, x: net.one(x).add_(x),
    "overload": lambda net, x: torch.ops.aten.add.Tensor(net.one(x), x),
}
"""One convolution beside an identity, added in every way there is."""


def _view_later(net: Net, x: Tensor) -> Tensor:
    view = x.flatten(2)
    y = (net.one(x) + x).relu_()
    return net.two(y) + y + view.reshape(y.shape)


def _shortcut_written(net: Net, x: Tensor) -> Tensor:
    y = net.one(x) + x
    x = x.relu_()
    return net.two(x) + y


def _into_clone(net: Net, x: Tensor) -> Tensor:
    z = x.sigmoid()
    z += net.one(x)
    y = z.relu_()
    return y + net.two(y)


def _twice(net: Net, x: Tensor) -> Tensor:
    y = x + net.one(x)
    z = F.relu(y + net.two(y), inplace=True)
    return z + x * 2 + y


def _view_of_sum(net: Net, x: Tensor) -> Tensor:
    y = (x + net.one(x)).flatten(2)
    z = (y + net.two(y.reshape(x.shape)).flatten(2)).mul_(2)
    return z.reshape(x.shape) * x + y.reshape(x.shape)


def _writes_shortcut(net: Net, x: Tensor) -> Tensor:
    view = x.flatten(2)
    view.mul_(0.5)
    return x + net.one(view.mul_(0.5).reshape(x.shape))


def _writes_unread(net: Net, x: Tensor) -> Tensor:
    left, right = x[:, :2], x[:, 2:]
    left.add_(net.one(x)[:, :2])
    return x + right.repeat(1, 2, 1, 1)


def _same_twice(net: Net, x: Tensor) -> Tensor:
    y = net.one(x)
    return y + y


def _also_read(net: Net, x: Tensor) -> Tensor:
    y = net.one(x)
    return (y + x) * y.sigmoid()


TRAPS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "sum written, shortcut read later": lambda net, x: (net.one(x) + x).relu_() + net.two(x),
    "sum written, a view of the shortcut read later": _view_later,
    "shortcut written, sum read later": _shortcut_written,
    "the branch is added into": lambda net, x: F.relu(net.one(x).add_(x), inplace=True),
    "the branch is added": _into_clone,
    "two sums written in a row": _twice,
    "sum viewed, then written": _view_of_sum,
    "sum returned beside the shortcut": lambda net, x: torch.cat([net.one(x) + x, x]).chunk(2)[0],
}
"""Sums and shortcuts that are written in place around the add; two convolutions to remove."""

NONE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "concat": lambda net, x: torch.cat([net.one(x), x], 1)[:, :4],
    "product": lambda net, x: net.one(x).sigmoid() * x,
    "bias": lambda net, x: net.one(x) + net.table,
    "table of the input's size": lambda net, x: net.one(x) + net.table.expand_as(x),
    "no parameters": lambda net, x: net.one(x).sigmoid() * (x.tanh() + x),
    "a write to what stays": _writes_shortcut,
    "a write to what stays, unread": _writes_unread,
    "one operand twice": _same_twice,
    "scaled": lambda net, x: torch.add(net.one(x), x, alpha=2),
    "broadcast": lambda net, x: net.one(x) + x.mean((2, 3), keepdim=True),
    "read by another too": _also_read,
    "difference": lambda net, x: x - net.one(x),
}
"""Sums and others that are no branches: what is tied differs, or something else needs it."""
