"""An ordinary training loop with complexity-aware training in it, on the nets and data of loops.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from controllers.loops import OPTIMIZERS, batch, build
from torch import Tensor, nn

from fxprune import auto_gate
from fxprune.controllers import ComplexityAware

STEPS = 60


class AwareLoop:
    """A user's training loop.

    Parameters
    ----------
    kind : str
        A key of `NETS`.
    optimizer : str
        A key of `OPTIMIZERS`.
    accumulate : int
        Parts in which the gradient of a batch is computed.
    wrap : callable, optional
        Makes of the gated model what forwards are taken with.
    autocast : bool
        Forwards in bfloat16.
    scaler : torch.amp.GradScaler, optional
        Scales the loss.
    scheduler : callable, optional
        Makes a learning-rate scheduler of the optimizer.
    clip : float, optional
        Largest norm of all gradients.
    dtype, memory_format
        Of the model.
    gate : dict, optional
        Further arguments of `auto_gate`.
    **arguments
        Of `ComplexityAware`; half of the MACs by default.
    """

    def __init__(
        self,
        kind: str = "residual",
        *,
        optimizer: str = "sgd",
        accumulate: int = 1,
        wrap: Callable[[Any], Any] | None = None,
        autocast: bool = False,
        scaler: torch.amp.GradScaler | None = None,
        scheduler: Callable[..., Any] | None = None,
        clip: float | None = None,
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.contiguous_format,
        gate: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        torch.manual_seed(0)  # dropout
        self.accumulate, self.autocast, self.scaler, self.clip = accumulate, autocast, scaler, clip
        self.dtype, self.memory_format = dtype, memory_format
        net = build(kind).to(dtype=dtype, memory_format=memory_format)
        self.gated = auto_gate(net, batch(0)[0].to(dtype), **(gate or {})).train()
        self.model = self.gated if wrap is None else wrap(self.gated)
        self.optimizer = OPTIMIZERS[optimizer](self.gated.parameters())
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        if not arguments.keys() & {"nu", "macs", "params"}:
            arguments["macs"] = 0.5
        self.aware = ComplexityAware(self.gated, self.optimizer, **{"steps": STEPS, **arguments})
        self.losses: list[float] = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            outputs = self.model(x.to(dtype=self.dtype, memory_format=self.memory_format))
            main, *rest = outputs if isinstance(outputs, tuple) else (outputs,)
            return sum((0.3 * F.cross_entropy(o, y) for o in rest), F.cross_entropy(main, y))

    def train_weights(self) -> None:
        """Take one weight step, without the controller."""
        self.optimizer.zero_grad()
        x, y = batch(len(self.losses))
        total = 0.0
        for some, theirs in zip(x.chunk(self.accumulate), y.chunk(self.accumulate), strict=True):
            loss = self.loss(some, theirs) * (len(theirs) / len(y))
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            total += loss.item()
        self.losses.append(total)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.gated.parameters(), self.clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
        if self.scheduler is not None:
            self.scheduler.step()

    def step(self) -> None:
        self.train_weights()
        if self.scaler is None:
            self.aware.step()
        else:
            self.aware.step(loss_scale=self.scaler.get_scale())
            self.scaler.update()

    def run(self, until: int | None = None) -> AwareLoop:
        """Train until so many steps are done, all by default."""
        while self.aware.steps_done < (self.aware.steps if until is None else until):
            self.step()
        return self

    def run_to(self, phase: str) -> AwareLoop:
        """Train until a phase has begun."""
        while self.aware.phase != phase:
            self.step()
        return self


def plain(value: Any) -> dict[str, Tensor]:
    """Return the leaves of nested plain data as tensors."""
    if isinstance(value, dict):
        pairs = [(f"{k}", v) for k, v in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{n}", v) for n, v in enumerate(value)]
    elif isinstance(value, str) or value is None:
        return {repr(value): torch.zeros(0)}
    else:
        return {"": torch.as_tensor(value).clone()}
    return {f"{k}.{name}": leaf for k, v in pairs for name, leaf in plain(v).items()}


def state_of(loop: AwareLoop) -> dict[str, Tensor]:
    """Return a copy of all that two equal runs share."""
    return plain(
        {
            "gated": dict(loop.gated.state_dict()),
            "keep": loop.gated.keep,
            "optimizer": loop.optimizer.state_dict(),
            "aware": loop.aware.state_dict(),
            "losses": loop.losses,
        }
    )
