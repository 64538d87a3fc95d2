"""One network in training: what a step does, and all that a checkpoint holds of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.analysis.plan import Plan
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.training import random_state
from fxprune.training.batches import Order, Samples
from fxprune.training.distributed import Ranks
from fxprune.training.log import Log, Row
from fxprune.training.loss import task_loss
from fxprune.training.methods import Controller, build_controller
from fxprune.training.optim import build_optimizer, build_schedule
from fxprune.training.settings import TrainSettings

__all__ = ["DENSE", "Clock", "Feed", "Stage"]

DENSE = "dense"
_SHOW_EVERY = 10  # steps between two readings of loss and accuracy for the bar
_HELD_BACK_STREAM = 1


class Clock:
    """Seconds a run takes, over all its sittings."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def add(self, seconds: float) -> None:
        """Count those of earlier sittings too."""
        self._start -= seconds

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start


@dataclass(frozen=True, slots=True)
class Feed:
    """Where a stage's samples come from.

    Attributes
    ----------
    samples : Samples
    order : Order
        Of the weight steps.
    held_back : Order or None
        Of the controller's.
    """

    samples: Samples
    order: Order
    held_back: Order | None = None

    @classmethod
    def of(
        cls,
        samples: Samples,
        rows: Tensor,
        held: Tensor | None,
        settings: TrainSettings,
        world: int,
    ) -> Feed:
        """Arrange samples in batches whose size the number of processes divides.

        Raises
        ------
        ConfigError
            If there are fewer samples than processes, or a batch cannot be divided.
        """
        if settings.batch_size % world or settings.accumulate > settings.batch_size // world:
            raise ConfigError(
                "The batch cannot be divided over the processes and the parts of a step.",
                seen=f"batch_size={settings.batch_size}, processes={world}, "
                f"accumulate={settings.accumulate}",
                hint="batch_size counts over all processes: make it a multiple of their number",
            )

        def order(chosen: Tensor, stream: int, what: str) -> Order:
            size = min(settings.batch_size, len(chosen) // world * world)
            if not size:
                raise ConfigError(
                    f"There are too few {what} samples.",
                    seen=f"{len(chosen)} for {world} process{'' if world == 1 else 'es'}",
                    hint="use more data, or another share of held_back",
                )
            return Order(chosen, size, settings.seed, stream)

        return cls(
            samples,
            order(rows, 0, "training"),
            None if held is None else order(held, _HELD_BACK_STREAM, "held-back"),
        )


class Stage:
    """The training of one network, from its first step to its last.

    Parameters
    ----------
    name : str
        ``"dense"``, or the name of the controller that is made for the network.
    network : nn.Module
        Trained in place. A controller needs a `GatedModule`.
    feed : Feed
    settings : TrainSettings
    ranks : Ranks

    Attributes
    ----------
    done, steps : int
        Optimizer steps done, and all there are to do.
    controller : Controller or None
    """

    def __init__(
        self, name: str, network: nn.Module, feed: Feed, settings: TrainSettings, ranks: Ranks
    ) -> None:
        self.name = name
        self.network = network
        self.steps = settings.epochs * feed.order.per_epoch
        self.done = 0
        self._feed = feed
        self._settings = settings
        self._ranks = ranks
        self._optimizer = build_optimizer(network, settings)
        self.controller: Controller | None = None
        if name != DENSE and isinstance(network, GatedModule):
            self.controller = build_controller(network, self._optimizer, self.steps, settings)
        self._schedule = build_schedule(self._optimizer, settings, self.steps)
        self._wrapper: nn.Module | None = None
        self._wrapped_plan: Plan | None = None
        self._held_batches = 0
        self._random: list[dict[str, Any]] | None = None
        # Loss times samples, right ones and samples since the last row; in float64, on the device.
        self._sums = torch.zeros(3, dtype=torch.float64, device=ranks.device)

    def run(self, log: Log, clock: Clock, save: Callable[[], None]) -> None:
        """Do the steps that are left.

        Parameters
        ----------
        log : Log
        clock : Clock
        save : callable
            Writes a checkpoint; called between two steps, on all ranks at the same ones.

        Raises
        ------
        ConfigError
            If the loss is not finite any more.
        """
        if self._random is None:
            random_state.seed_all(self._ranks.device, self._settings.seed, self._ranks.rank)
        else:
            random_state.restore(self._random[self._ranks.rank], self._ranks.device)
        per_epoch = self._feed.order.per_epoch
        log_every = self._settings.log_every or per_epoch
        save_every = self._settings.checkpoint_every or per_epoch
        self._wrapper = None
        log.begin(self.name, self.done, self.steps)
        for images, labels in self._batches():
            rate = self._weight_step(self._wrapped(), images, labels)
            self.done += 1
            last = self.done == self.steps
            if self.done % log_every == 0 or last:
                log.add(self._row(rate, clock))
            elif self.done % _SHOW_EVERY == 0:
                self._show(log)
            log.advance()
            if self.done % save_every == 0 or last:
                save()
        log.end()

    def _wrapped(self) -> nn.Module:
        """Return the module to call; it is made anew when the network has got smaller."""
        plan = getattr(self.network, "plan", None)
        if self._wrapper is None or self._wrapped_plan is not plan:
            self._wrapper = None  # the old one's hooks on the parameters go first
            self._wrapper, self._wrapped_plan = self._ranks.wrap(self.network).train(), plan
        return self._wrapper

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's part of every batch that is left."""
        while self.done < self.steps:
            epoch, start = divmod(self.done, self._feed.order.per_epoch)
            groups = [self._ranks.share(rows) for rows in self._feed.order.epoch(epoch)[start:]]
            for images, labels in self._feed.samples.batches(groups, epoch):
                yield self._moved(images), self._moved(labels)

    def _weight_step(self, wrapped: nn.Module, images: Tensor, labels: Tensor) -> float:
        """Do one optimizer step and what the controller does after it; return its rate."""
        self._optimizer.zero_grad()
        parts = list(
            zip(
                images.chunk(self._settings.accumulate),
                labels.chunk(self._settings.accumulate),
                strict=True,
            )
        )
        for number, (some, theirs) in enumerate(parts, 1):
            alone = number < len(parts)
            with self._ranks.unsynchronised(wrapped) if alone else nullcontext():
                loss, right = self._loss(wrapped, some, theirs, self._settings.label_smoothing)
                (loss * (len(theirs) / len(labels))).backward()  # type: ignore[no-untyped-call]
            self._count(loss, right, len(theirs))
        if self._settings.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip)
        self._optimizer.step()
        rate = float(self._optimizer.param_groups[0]["lr"])
        if self.controller is not None:
            self.controller.step(self._held_back_loss)
        self._schedule.step()
        return rate

    def _held_back_loss(self) -> Tensor:
        """Return the task loss on the next batch of held-back data."""
        if self._feed.held_back is None:
            raise ConfigError("This stage has no held-back data.", where=self.name)
        rows = self._ranks.share(self._feed.held_back.batch(self._held_batches))
        self._held_batches += 1
        # The epoch of the weights: a dataset has one at a time, and may be loading ahead.
        epoch = self.done // self._feed.order.per_epoch
        ((images, labels),) = self._feed.samples.batches([rows], epoch)
        return self._loss(self.network, self._moved(images), self._moved(labels))[0]

    def _loss(
        self, model: nn.Module, images: Tensor, labels: Tensor, smoothing: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        amp = self._settings.amp
        with torch.autocast(self._ranks.device.type, torch.bfloat16, enabled=amp):
            outputs = model(images)
        return task_loss(outputs, labels, smoothing)

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._ranks.device, non_blocking=True)

    # -- figures
    def _count(self, loss: Tensor, right: Tensor, n: int) -> None:
        added = (loss.detach().double() * n, right.double(), right.new_tensor(n).double())
        self._sums += torch.stack(added)

    def _row(self, rate: float, clock: Clock) -> Row:
        loss, right, seen = self._checked_sums().tolist()
        self._sums.zero_()
        return Row(
            stage=self.name,
            step=self.done,
            epoch=-(-self.done // self._feed.order.per_epoch),
            loss=loss / seen,
            accuracy=right / seen,
            lr=rate,
            phase=DENSE if self.controller is None else self.controller.phase,
            expected=1.0 if self.controller is None else self.controller.expected,
            seconds=clock.seconds,
        )

    def _checked_sums(self) -> Tensor:
        """Return the sums over all ranks; those of a run that went astray are an error."""
        sums = self._ranks.summed(self._sums).cpu()
        if not bool(sums.isfinite().all()):
            raise ConfigError(
                "The training loss is not finite any more.",
                where=f"{self.name}, before step {self.done}",
                hint=f"lower lr (it is {self._settings.rate:g}) or set clip",
            )
        return sums

    def _show(self, log: Log) -> None:
        loss, right, seen = self._sums.tolist()
        control = self.controller
        log.show(
            loss / seen,
            right / seen,
            "" if control is None else control.phase,
            1.0 if control is None else control.expected,
            self._settings.target[0],
        )

    # -- checkpoints
    def state_dict(self) -> dict[str, Any]:
        """Return everything, as plain values and tensors; to be called on all ranks.

        Raises
        ------
        ConfigError
            If the loss is not finite any more: a checkpoint of that would be of no use.
        """
        sums = self._checked_sums()
        return {
            "stage": self.name,
            "done": self.done,
            "held_batches": self._held_batches,
            "remaining": self._remaining(),
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "controller": None if self.controller is None else self.controller.state_dict(),
            "sums": sums,
            "random": self._ranks.gathered(random_state.capture(self._ranks.device)),
        }

    def _remaining(self) -> dict[str, Tensor] | None:
        """Return which units are left of a network that may shrink."""
        return self.network.remaining if isinstance(self.network, GatedModule) else None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        if isinstance(self.network, GatedModule) and state["remaining"] is not None:
            self.network.shrink_to_(state["remaining"], self._optimizer)
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self.controller is not None:
            self.controller.load_state_dict(state["controller"])
        self.done = int(state["done"])
        self._held_batches = int(state["held_batches"])
        if self._ranks.is_main:
            self._sums.copy_(state["sums"])
        self._random = state["random"]
