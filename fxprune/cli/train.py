"""``fxprune train``: train a model once, and prune it while it trains."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from fxprune.cli.commands import Answer, ignored_names
from fxprune.cli.models import build_model
from fxprune.data import ImageData, digits, glyphs, image_folder
from fxprune.errors import ConfigError
from fxprune.training import Datasets, TrainSettings
from fxprune.training import train as run_training
from fxprune.training.methods import METHODS
from fxprune.training.settings import OPTIMIZERS, SCHEDULES

__all__ = ["add_train_options", "train"]

_SETS: dict[str, Callable[..., ImageData]] = {"digits": digits, "glyphs": glyphs}


def train(args: argparse.Namespace) -> Answer | None:
    """Train a model once, pruning it while it trains."""
    settings = TrainSettings(
        macs=args.macs,
        params=args.params,
        nu=args.nu,
        alpha=args.alpha,
        beta=args.beta,
        epochs=args.epochs,
        method=args.method,
        every=args.every,
        held_back=args.held_back,
        round_to=args.round_to,
        ignore=tuple(ignored_names(args.ignore)),
        attention=args.attention,
        branches=args.branches,
        shrink=args.shrink,
        dense=args.dense,
        batch_size=args.batch_size,
        accumulate=args.accumulate,
        optimizer=args.optimizer,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        schedule=args.schedule,
        clip=args.clip,
        amp=args.amp,
        device=args.device,
        seed=args.seed,
        workers=args.workers,
    )
    data = _data(args.data, args.size, args.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        model = build_model(args.model, args.weights, data.n_classes)
    found = run_training(model, data, settings, args.out, resume=args.resume)
    if int(os.environ.get("RANK", "0")):  # under torchrun the first process speaks for all
        return None
    return Answer(str(found), found.to_dict())


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fxprune train`` to its parser."""
    add = parser.add_argument
    add("--data", required=True, metavar="DATA", help="digits, glyphs, or a folder of images")
    add("--out", required=True, metavar="DIR", help="where to write; keeps checkpoints too")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--macs", type=float, help="share of the model's MACs to keep, 0 to 1")
    budget.add_argument("--params", type=float, help="share of its parameters to keep, 0 to 1")
    budget.add_argument("--nu", type=float, help="with complexity: price of the whole complexity")
    add("--alpha", type=float, help="with complexity: share of MACs in it, else parameters")
    add("--beta", type=float, help="with complexity: 0 removes units only, 1 layers only (0.5)")
    add("--epochs", type=int, required=True, metavar="N", help="passes over the training data")
    add("--method", default="ato", choices=tuple(METHODS), help="the controller (ato)")
    parser.set_defaults(branches=None)  # the method decides
    add("--every", type=int, metavar="N", help="steps per step of the controller (by run length)")
    add("--held-back", type=float, default=0.05, help="share of data for the controller (0.05)")
    add("--round-to", type=int, default=1, metavar="N", help="keep widths multiples of N (1)")
    add(
        "--shrink",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="cut out what is settled while training goes on (yes)",
    )
    add(
        "--dense",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also train the model without pruning, to compare (yes)",
    )
    add("--batch-size", type=int, default=64, metavar="N", help="over all processes (64)")
    add("--accumulate", type=int, default=1, metavar="N", help="compute a batch in N parts (1)")
    add("--optimizer", default="sgd", choices=tuple(OPTIMIZERS), help="(sgd)")
    add("--lr", type=float, help="peak learning rate (0.05 for sgd, else 0.001)")
    add("--momentum", type=float, default=0.9, help="of sgd (0.9)")
    add("--weight-decay", type=float, default=5e-4, help="(0.0005)")
    add("--schedule", default="one-cycle", choices=SCHEDULES, help="(one-cycle)")
    add("--clip", type=float, help="largest norm of the gradient (none)")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add("--device", default="auto", help="cpu, cuda, or auto (auto)")
    add("--seed", type=int, default=0, help="for weights, data and the controller (0)")
    add("--size", type=int, help="height and width of images (32; folders 224)")
    add("--workers", type=int, default=0, metavar="N", help="processes that load images (0)")


def _data(name: str, size: int | None, seed: int) -> ImageData | Datasets:
    options = {"seed": seed} if size is None else {"seed": seed, "size": size}
    if name in _SETS:
        return _SETS[name](**options)
    if not Path(name).is_dir():
        raise ConfigError(
            "The --data option takes digits, glyphs, or a folder.",
            seen=name,
            hint="a folder holds train/CLASS/*.png and val/CLASS/*.png (or test), or CLASS/*.png",
        )
    return image_folder(name, **options)
