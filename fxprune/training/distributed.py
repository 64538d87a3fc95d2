"""One process or several: what a training run needs of the others.

Every global batch is shared out over the ranks in contiguous parts of the same order, so that a run
of several processes sees what one process sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fxprune.errors import ConfigError, FxpruneError

__all__ = ["Ranks", "joined"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run, seen from one of them.

    Attributes
    ----------
    rank, world : int
        This one's number, from 0, and how many there are.
    device : torch.device
        Where this one computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """Return this rank's part of a global batch, whose size the number of ranks divides."""
        return rows.view(self.world, -1)[self.rank]

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module to call for the weight step: it averages gradients over the ranks."""
        if self.world == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def unsynchronised(self, wrapped: nn.Module) -> AbstractContextManager[Any]:
        """Return a context in which gradients of a wrapped module only add up locally."""
        if isinstance(wrapped, DistributedDataParallel):
            context: AbstractContextManager[Any] = wrapped.no_sync()
            return context
        return nullcontext()

    def same_tensors(self, module: nn.Module) -> None:
        """Give parameters and buffers the values they have on the first rank."""
        if self.world > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gathered(self, value: T) -> list[T]:
        """Return every rank's value, in the order of the ranks, on every rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def agreed(self, make: Callable[[], T]) -> T:
        """Do something on the first rank only; give its result to all.

        Raises
        ------
        FxpruneError
            On every rank, if the first one raised it.
        """
        if self.world == 1:
            return make()
        sent: list[Any] = [None, None]
        if self.is_main:
            try:
                sent[0] = make()
            except FxpruneError as error:
                sent[1] = error
        dist.broadcast_object_list(sent, src=0, device=self.device)
        if sent[1] is not None:
            raise sent[1]
        result: T = sent[0]
        return result


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other processes that torchrun started, if there are any.

    Parameters
    ----------
    device : str
        ``"auto"`` or what `torch.device` takes. Of several CUDA devices, each process takes that
        of its local rank.

    Yields
    ------
    Ranks
        A process group made here (gloo on CPU, nccl on CUDA) is destroyed at the end.

    Raises
    ------
    ConfigError
        If there is no such device.
    """
    chosen = _device(device)
    made = False
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        made = True
    try:
        if dist.is_available() and dist.is_initialized():
            yield Ranks(dist.get_rank(), dist.get_world_size(), chosen)
        else:
            yield Ranks(0, 1, chosen)
    finally:
        if made:
            dist.destroy_process_group()


def _device(text: str) -> torch.device:
    name = text
    if text == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"There is no device {text!r} to train on.",
            seen=f"{error}".splitlines()[0],
            hint="auto, cpu, cuda or cuda:0",
        ) from error
    if device.type == "cuda":
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device
