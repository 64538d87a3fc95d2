"""What the rows of op_samples.py are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Sample", "SampleNet", "frozen", "module", "weights"]

INPUTS: dict[str, tuple[int, ...]] = {
    "signal": (2, 3, 8),
    "pixels": (2, 3, 6, 6),
    "volume": (2, 3, 4, 4, 4),
    "tokens": (2, 5, 3),
    "rows": (6, 3),
}
LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "signal": lambda i, o: nn.Conv1d(i, o, 1),
    "pixels": lambda i, o: nn.Conv2d(i, o, 1),
    "volume": lambda i, o: nn.Conv3d(i, o, 1),
    "tokens": nn.Linear,
    "rows": nn.Linear,
}


@dataclass(frozen=True)
class Sample:
    """A row of the table.

    Attributes
    ----------
    keys : str
        Registered operators, without ``aten::``, separated by blanks; empty for a pointwise operator.
    apply : callable
        ``apply(net, y)``: what happens between the layers; `net` has the modules and parameters of `extra`.
    kind : str
        Key of `INPUTS`: what the network works on.
    out : int
        Channels that `apply` returns; 8 come in.
    prunable : bool
        Whether the channels of the first layer must stay prunable.
    reason : str
        Part of the reason they are frozen for.
    extra : callable
        Makes what `apply` needs besides the tensor: modules, or tensors that become parameters.
    training : bool
        Whether to compare in training mode.
    counted : bool
        Whether torch counts all of the row's products: it leaves out those of a matrix and a vector.
    """

    keys: str
    apply: Callable[[Any, Tensor], Tensor]
    kind: str = "pixels"
    out: int = 8
    prunable: bool = True
    reason: str = ""
    extra: Callable[[], dict[str, Any]] = field(default=dict)
    training: bool = False
    counted: bool = True

    @property
    def ops(self) -> frozenset[str]:
        return frozenset(f"aten::{key}" for key in self.keys.split())

    def build(self) -> tuple[SampleNet, Tensor]:
        """Return the network and an input, both float64."""
        net = SampleNet(self).double().train(self.training)
        return net, torch.rand(INPUTS[self.kind], dtype=torch.float64) + 0.1


class SampleNet(nn.Module):
    """``read(apply(make(x)))``."""

    def __init__(self, sample: Sample) -> None:
        super().__init__()
        layer = LAYERS[sample.kind]
        self.make, self.read = layer(3, 8), layer(sample.out, 4)
        for name, value in sample.extra().items():
            setattr(self, name, nn.Parameter(value) if isinstance(value, Tensor) else value)
        self.apply_op = sample.apply

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.apply_op(self, self.make(x)))


def frozen(keys: str, reason: str, apply: Callable[[Any, Tensor], Tensor], **kwargs: Any) -> Sample:
    """Return a row whose channels may not be pruned, for this reason."""
    return Sample(keys, apply, prunable=False, reason=reason, **kwargs)


def module(
    make: Callable[[], nn.Module],
    keys: str,
    after: Callable[[Tensor], Tensor] = lambda y: y,
    **kwargs: Any,
) -> Sample:
    """Return a row that calls a module, and `after` on what it returns."""
    return Sample(keys, lambda net, y: after(net.op(y)), extra=lambda: {"op": make()}, **kwargs)


def weights(*shape: int) -> Tensor:
    return torch.rand(shape) + 0.2
