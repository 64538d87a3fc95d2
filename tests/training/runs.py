"""Tiny nets and data that train in a second, and what the tests' child processes run."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fxprune.data import ImageData
from fxprune.errors import ConfigError
from fxprune.gated import GatedModule
from fxprune.training import TrainingResult, TrainSettings, train
from fxprune.training.checkpoint import NAME, Checkpoints
from fxprune.training.distributed import joined
from fxprune.training.log import Log, Row
from fxprune.training.random_state import preserved
from fxprune.training.run import _Run

N_CLASSES = 4
SETTINGS = TrainSettings(macs=0.5, epochs=6, batch_size=16, device="cpu")
RANKS_SETTINGS = {
    method: dataclasses.replace(SETTINGS, dense=False, accumulate=2, method=method)
    for method in ("ato", "complexity")
}
# 200 samples make 12 steps an epoch; 190, without those held back, 11.

# A server that imported torch once forks the children of all tests.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["fxprune.training"])


def net(norm: bool = True) -> nn.Sequential:
    """Return a small convolutional net, always with the same weights; random layers come with norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1),
            nn.BatchNorm2d(24) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2),
            nn.BatchNorm2d(32) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(0.1) if norm else nn.Identity(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(32, N_CLASSES),
        )


class Residual(nn.Module):
    """A block that can be removed, and its units."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(24, 24, 3, padding=1)
        self.two = nn.Conv2d(24, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.two(self.one(x).relu())).relu()


def branched() -> nn.Sequential:
    """Return `net` without norms and with a branch, always with the same weights."""
    model = net(norm=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model[1] = Residual()
    return model


RANKS_NETS = {"ato": lambda: net(norm=False), "complexity": branched}


def data(n: int = 200, m: int = 40, seed: int = 0) -> ImageData:
    """Return noise whose channels tell the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(N_CLASSES, (n + m,), generator=generator)
    images = torch.randn(n + m, 3, 8, 8, generator=generator)
    images += (labels[:, None] == torch.arange(3)).float()[:, :, None, None]
    return ImageData(images[:n], labels[:n], images[n:], labels[n:], N_CLASSES)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def ends(result: TrainingResult) -> dict[str, Tensor]:
    """Return everything that two runs which are the same must share at their end."""
    return states(result.gated, result.dense_network, result.rows)


def states(gated: GatedModule, dense: nn.Module, rows: Sequence[Row]) -> dict[str, Tensor]:
    return {
        **{f"gated {k}": v for k, v in gated.state_dict().items()},
        **{f"dense {k}": v for k, v in dense.state_dict().items()},
        **{f"mask {k}": v for k, v in gated.keep.items()},
        "log": torch.tensor([[r.step, r.loss, r.accuracy, r.lr, r.expected] for r in rows]),
    }


def trained(
    model: nn.Module, given: Any, settings: TrainSettings, out: Path, resume: bool = False
) -> dict[str, Tensor]:
    """Do what `train` does, except for what follows the last step."""
    with deterministic(), joined("cpu") as ranks, preserved(ranks.device):
        run = _Run(model, given, settings, out, ranks)
        rows = run.start(resume)
        run._stages[-1].controller.finish()
    return states(run._gated, run._dense, rows)


def run_child(out: Path, step: Any, fatal_write: int, moment: str) -> None:
    """Train with resume=True and tell the steps done.

    The process kills itself at the given moment of its `fatal_write`-th checkpoint.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tqdm.set_lock(threading.RLock())  # its default one would be left behind in the system
    if fatal_write:
        _die_while_writing(fatal_write, moment)
    advance = Log.advance

    def counted(self: Log) -> None:
        advance(self)
        step.value += 1

    Log.advance = counted  # type: ignore[method-assign]
    train(net(), data(), dataclasses.replace(SETTINGS, checkpoint_every=3), out, resume=True)


def _die_while_writing(number: int, moment: str) -> None:
    written = 0
    save, replace = torch.save, Path.replace

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fatal_save(state: Any, path: Path) -> None:
        nonlocal written
        written += 1
        save(state, path)
        if written == number and moment == "within the file":
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def fatal_replace(self: Path, target: Path) -> Path:
        result = replace(self, target)
        if written == number and self.name == NAME and moment == "between the renames":
            die()
        return result

    torch.save = fatal_save
    Path.replace = fatal_replace  # type: ignore[method-assign, assignment]


def rank_child(rank: int, world: int, ports: tuple[int, int], out: Path, method: str) -> None:
    """Train as torchrun would have one of several processes do it, in two sittings.

    Each has a port of its own: on the same one, a fast rank could find the group of the first.
    """
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(ports[0]),
    )
    model, settings = RANKS_NETS[method](), RANKS_SETTINGS[method]
    if rank:  # the first rank's weights count
        nn.init.zeros_(model[0].weight)
    write = Checkpoints.write
    Checkpoints.write = _refuse_write
    try:
        train(model, data(), settings, out)
    except ConfigError as error:
        refused = str(error)
    Checkpoints.write = write
    os.environ["MASTER_PORT"] = str(ports[1])
    result = train(model, data(), settings, out, resume=True)
    left = {"ends": ends(result), "figures": result.to_dict(), "refused": refused}
    torch.save(left, out / f"rank{rank}.pt")


_write = Checkpoints.write


def _refuse_write(self: Checkpoints, state: Any) -> None:
    """Write three checkpoints, then fail, as a full disk would make it."""
    if state["done"] > 3 * 11:
        raise ConfigError("The disk is full.")
    _write(self, state)
