"""Small models whose forward depends on data, for tests of capture by regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "Attends",
    "AuxInTraining",
    "Branches",
    "Detector",
    "NothingToCapture",
    "OtherPath",
    "ReadsSize",
    "ReadsWeight",
    "WritesInPlace",
    "awake",
]


def awake(model: nn.Module) -> Any:
    """Make a model float64, in eval mode, with statistics and affine parameters of its own."""
    generator = torch.Generator().manual_seed(0)
    model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def _block(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.SiLU())


class Branches(nn.Module):
    """Two parts handed on untouched, then Python that looks at values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(_block(3, 8), _block(8, 12))
        self.neck = nn.Sequential(nn.Sigmoid(), nn.Conv2d(12, 10, 1))
        self.head = nn.Sequential(nn.Linear(10, 9), nn.GELU(), nn.Linear(9, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        pooled = self.neck(self.backbone(x)).mean((2, 3))
        if pooled.sum() > 0:
            pooled = pooled * 2
        return {"scores": self.head(pooled), "seen": (pooled > 0).sum()}


class _Pyramid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = _block(3, 8), nn.Sequential(nn.MaxPool2d(2), _block(8, 8))
        self.lateral = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        return {"fine": self.lateral(fine), "coarse": self.lateral(self.down(fine))}


class Detector(nn.Module):
    """A pyramid, heads that are called once per level, and a choice by value."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = _Pyramid()
        self.tower = _block(6, 7)
        self.scores, self.boxes = nn.Conv2d(7, 2, 1), nn.Conv2d(7, 4, 1)
        self.threshold = -1.0

    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for image in images:
            levels = []
            for level in self.pyramid(image[None]).values():
                tower = self.tower(level)
                boxes, scores = self.boxes(tower).flatten(2), self.scores(tower).flatten(2)
                levels.append(boxes[0, :, scores[0, 0] > self.threshold])
            found.append(torch.cat(levels, dim=1))
        return found


class OtherPath(nn.Module):
    """Python code that reads what passes between two parts, for some data only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = _block(3, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if x.sum() < 0:
            y = torch.sigmoid(y.flip(1)) + y.mean(1, keepdim=True) + y.shape[1]
        return self.second(y).exp()


class ReadsSize(nn.Module):
    """Python code that reads how many channels a layer inside a part has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Sequential(_block(3, 8), _block(8, 6)), nn.Conv2d(6, 2, 1)
        self.width = 6

    def forward(self, x: Tensor) -> Tensor:
        scale = self.body[0][0].out_channels
        y = self.out(self.body(x))
        return y / scale if y.sum() > 0 else y * scale


class ReadsWeight(ReadsSize):
    """Python code that uses a weight of a part."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.body(x))
        return y * self.body[0][0].weight.square().sum() if y.sum() > 0 else y


class WritesInPlace(nn.Module):
    """A part that changes what it is handed, which the Python code hands on again."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(_block(3, 5), _block(5, 8))
        self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1))
        self.third = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) - 0.0 if x.sum() > 1e9 else self.first(x)
        return self.second(y) + self.third(y)


class _Aux(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.aux = _block(3, 8), _block(8, 6), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = self.second(y)
        return out + self.aux(y) if self.training else out


class AuxInTraining(nn.Module):
    """A part whose graph depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = _Aux(), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.body(x))
        return y if y.sum() > 0 else y * 2


def _shares(scores: Tensor) -> Tensor:
    return scores.softmax(-1) / (scores.shape[-1] if scores.dim() else 1)


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(1, keepdim=True)


torch.fx.wrap("_shares")
torch.fx.wrap("_centred")


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 12)
        self.layer = nn.TransformerEncoderLayer(12, 3, 10, 0.0, batch_first=True)
        self.pool = nn.MultiheadAttention(12, 2, batch_first=True)
        self.out, self.mix = nn.Linear(12, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = _centred(self.layer(self.embed(x)))
        return self.mix(_shares(self.out(y + self.pool(y, y, y)[0])))


class Attends(nn.Module):
    """Attention in a part that the Python code calls with as many tokens as it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = _Attention(), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        tokens = x.flatten(2).transpose(1, 2)
        few = tokens[:, : 7 + int((x[0, 0, 0] > 0).sum())]
        return [self.head(self.body(part)).exp() for part in (tokens, few)]


class NothingToCapture(nn.Module):
    """Nothing but a layer between Python and Python."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.only(x)
        return y if y.sum() > 0 else -y
