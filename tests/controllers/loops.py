"""Tiny networks and data, and an ordinary training loop with Auto-Train-Once in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers import AutoTrainOnce, Schedule
from fxprune.gated import GatedModule

N_CLASSES = 3
STEPS = 40
BATCH = 12
ARGUMENTS: dict[str, Any] = {
    "steps": STEPS,
    "every": 2,
    "learning_rate": 1e-2,
    "schedule": Schedule(),
}
"""The paper's schedule, and a controller that learns something in 40 steps."""


class Block(nn.Module):
    """Stem, a residual block with BatchNorm, two convolutions without."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.inner = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(24)
        self.outer = nn.Conv2d(24, 16, 1, bias=False)
        self.outer_norm = nn.BatchNorm2d(16)
        self.neck = nn.Conv2d(16, 48, 1)
        self.last = nn.Conv2d(48, 40, 1)
        self.head = nn.Linear(40, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.inner_norm(self.inner(x)))
        x = F.relu(x + self.outer_norm(self.outer(y)))
        return self.head(F.relu(self.last(F.relu(self.neck(x)))).mean((2, 3)))


class Mobile(nn.Module):
    """Two inverted residuals with depthwise convolutions and ReLU6, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 14, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(14)
        self.first = self._inverted(14, 28)
        self.second = self._inverted(14, 24)
        self.last = nn.Sequential(
            nn.Conv2d(14, 48, 1), nn.BatchNorm2d(48), nn.Hardswish(), nn.Conv2d(48, 40, 1)
        )
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(40, N_CLASSES)

    @staticmethod
    def _inverted(width: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(width, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.stem(x)))
        x = x + self.first(x)
        x = x + self.second(x)
        return self.head(self.drop(self.last(x).mean((2, 3))))


class Inception(nn.Module):
    """Joined branches, and as in GoogLeNet a second head and a second output in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.one = nn.Sequential(nn.Conv2d(16, 15, 1), nn.BatchNorm2d(15), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(16, 18, 3, padding=1), nn.BatchNorm2d(18), nn.ReLU())
        self.aux = nn.Sequential(nn.Conv2d(16, 5, 1), nn.Sigmoid())
        self.aux_head = nn.Linear(5, N_CLASSES)
        self.neck = nn.Sequential(nn.Conv2d(33, 48, 1), nn.GELU(), nn.Conv2d(48, 40, 1))
        self.head = nn.Linear(40, N_CLASSES)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        y = torch.cat([self.one(x), self.three(x)], 1)
        y = self.neck(y).mean((2, 3))
        if self.training:
            return self.head(y), self.aux_head(self.aux(x).mean((2, 3)))
        return self.head(y)


class Mlp(nn.Module):
    """Linear layers with LayerNorm and an activation that is not 0 at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(36, 24)
        self.norm = nn.LayerNorm(24)
        self.wide = nn.Linear(24, 40)
        self.back = nn.Linear(40, 24)
        self.last = nn.LayerNorm(24)
        self.neck = nn.Linear(24, 30)
        self.head = nn.Linear(30, N_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.flatten(1))
        x = x + self.back(self.wide(self.norm(x)).sigmoid())
        return self.head(F.softplus(self.neck(self.last(x))))


NETS: dict[str, type[nn.Module]] = {
    "residual": Block,
    "depthwise": Mobile,
    "two modes": Inception,
    "linear": Mlp,
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 3e-3, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 2e-3),
}


def build(kind: str = "residual", seed: int = 0) -> nn.Module:
    """Return one of `NETS`, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[kind]()


def batch(number: int, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Return the training batch of one step: bright stripes, whose direction is the class."""
    generator = torch.Generator().manual_seed(1000 + number)
    labels = torch.randint(N_CLASSES, (size,), generator=generator)
    images = torch.randn(size, 1, 6, 6, generator=generator) * 0.3
    images[labels == 0, :, ::2] += 1
    images[labels == 1, :, :, ::2] += 1
    return images, labels


def held_back(number: int) -> tuple[Tensor, Tensor]:
    """Return a batch that no weight is trained with."""
    return batch(-1 - number)


class Loop:
    """A user's training loop.

    Parameters
    ----------
    kind : str
        A key of `NETS`.
    optimizer : str or callable
        A key of `OPTIMIZERS`, or what makes an optimizer of parameters.
    scheduler : callable, optional
        Makes a learning-rate scheduler of the optimizer.
    accumulate : int
        Batches per weight step.
    clip : float, optional
        Largest norm of all gradients.
    autocast : bool
        Forwards in bfloat16.
    dtype, memory_format
        Of the model.
    wrap : callable, optional
        Makes of the gated model what forwards are taken with, such as ``torch.compile``.
    **arguments
        Of `AutoTrainOnce`, on top of `ARGUMENTS`; half of the MACs by default.
    """

    def __init__(
        self,
        kind: str = "residual",
        *,
        optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd",
        scheduler: Callable[..., Any] | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        autocast: bool = False,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        wrap: Callable[[GatedModule], Any] | None = None,
        **arguments: Any,
    ) -> None:
        torch.manual_seed(0)  # dropout
        self.dtype, self.memory_format = dtype, memory_format
        self.accumulate, self.clip, self.autocast = accumulate, clip, autocast
        net = build(kind).to(dtype=dtype, memory_format=memory_format)
        self.gated = auto_gate(net, batch(0)[0].to(dtype)).train()
        self.model = self.gated if wrap is None else wrap(self.gated)
        make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
        self.optimizer = make(self.gated.parameters())
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        given = {**({} if "params" in arguments else {"macs": 0.5}), **ARGUMENTS, **arguments}
        self.ato = AutoTrainOnce(self.gated, self.optimizer, **given)
        self.losses: list[float] = []
        self.asked: list[int] = []
        """Steps at which the held-back loss was called."""

    def input(self, x: Tensor) -> Tensor:
        return x.to(dtype=self.dtype, memory_format=self.memory_format)

    def loss(self, data: tuple[Tensor, Tensor]) -> Tensor:
        x, y = data
        low = torch.autocast("cpu", torch.bfloat16) if self.autocast else nullcontext()
        with low:
            outputs = self.model(self.input(x))
            main, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
            return sum((0.3 * F.cross_entropy(o, y) for o in rest), F.cross_entropy(main, y))

    def held_back_loss(self) -> Tensor:
        self.asked.append(self.ato.steps_done)
        return self.loss(held_back(self.ato.steps_done))

    def train_weights(self) -> None:
        """Take one weight step, without the controller."""
        first = self.accumulate * len(self.losses)
        self.optimizer.zero_grad()
        total = 0.0
        for number in range(first, first + self.accumulate):
            loss = self.loss(batch(number)) / self.accumulate
            loss.backward()
            total += loss.item()
        self.losses.append(total)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.gated.parameters(), self.clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def step(self) -> None:
        self.train_weights()
        self.ato.step(self.held_back_loss)

    def run(self, until: int | None = None) -> Loop:
        """Train until so many steps are done, all by default."""
        while self.ato.steps_done < (self.ato.steps if until is None else until):
            self.step()
        return self

    def run_to(self, phase: str) -> Loop:
        """Train until a phase has begun."""
        while self.ato.phase != phase:
            self.step()
        return self


def state_of(loop: Loop) -> dict[str, Tensor]:
    """Return a copy of all that two equal runs share: weights, buffers, masks, both optimizers."""
    found = {f"gated {k}": v for k, v in loop.gated.state_dict().items()}
    found |= {f"mask {k}": v for k, v in loop.gated.keep.items()}
    for name, optimizer in (("weights", loop.optimizer), ("controller", loop.ato._optimizer)):
        for number, state in optimizer.state_dict()["state"].items():
            found |= {f"{name} {number} {k}": torch.as_tensor(v) for k, v in state.items()}
    found |= {f"network {k}": v for k, v in loop.ato.network.state_dict().items()}
    found["generator"] = loop.ato._generator.get_state()
    found["numbers"] = torch.tensor([loop.ato.steps_done, loop.ato.expected], dtype=torch.float64)
    found["losses"] = torch.tensor(loop.losses, dtype=torch.float64)
    return {key: value.clone() for key, value in found.items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """List what is not bit for bit the same in two states."""
    return [
        key
        for key in one.keys() | other.keys()
        if key not in one or key not in other or not torch.equal(one[key], other[key])
    ]


@contextmanager
def nothing_random() -> Iterator[None]:
    """Check that torch's global random state is the same after the block."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)
