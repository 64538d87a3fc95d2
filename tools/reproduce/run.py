"""Train and prune a network as the Auto-Train-Once paper does, on data that is on the disk.

::

    python tools/reproduce/run.py --list
    python tools/reproduce/run.py cifar10-resnet56 --data ~/data --out runs/c10-r56 --workers 8
    torchrun --nproc-per-node 8 tools/reproduce/run.py imagenet-resnet50 \\
        --data ~/imagenet --out runs/in-r50 --workers 16 --amp

README.md beside this file tells how the data must lie and where the numbers are from. A run that
was stopped goes on with ``--resume``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from cifar import cifar
from imagenet import imagenet
from recipes import RECIPES, SOURCES, Recipe, find_recipe

from fxprune._files import replacing
from fxprune._tables import table
from fxprune.errors import ConfigError, FxpruneError
from fxprune.training import Datasets, TrainingResult, train

__all__ = ["RESULT", "main", "open_data", "recipe_table", "run"]

RESULT = "result.json"
_USER_ERROR = 2
_IMAGENET_SIZE = 224


def run(recipe: Recipe, data: Datasets, out: Path, resume: bool, **others: Any) -> TrainingResult:
    """Run a recipe; the process that speaks for all writes ``result.json`` beside the rest.

    Parameters
    ----------
    recipe : Recipe
    data : Datasets
    out : Path
    resume : bool
        As for `fxprune.training.train`.
    **others
        Fields of `fxprune.training.TrainSettings` that the recipe lacks or that replace its own.

    Returns
    -------
    TrainingResult
    """
    settings = recipe.settings(**others)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        model = recipe.build(data.n_classes)
    found = train(model, data, settings, out, resume=resume)
    if _speaks():
        figures = {"recipe": recipe.name, "epochs": settings.epochs, **found.to_dict()}
        with replacing(out / RESULT) as draft:
            draft.write_text(json.dumps(figures, indent=2) + "\n")
    return found


def open_data(recipe: Recipe, path: Path, seed: int, size: int | None = None) -> Datasets:
    """Return the data of a recipe.

    Parameters
    ----------
    recipe : Recipe
    path : Path
        See `cifar.cifar` and `imagenet.imagenet`.
    seed : int
        Of the augmentation.
    size : int, optional
        Height and width, for ImageNet; 224 by default.

    Raises
    ------
    ConfigError
        When the data is not there or damaged.
    """
    if recipe.data == "imagenet":
        return imagenet(path, size or _IMAGENET_SIZE, seed, recipe.jitter)
    if size is not None:
        raise ConfigError("The images of CIFAR are 32x32: --size is for ImageNet.", seen=str(size))
    return cifar(recipe.data, path, seed)


def recipe_table() -> str:
    """Return the recipes as a table; a letter behind every value tells where it is from."""
    names = list(dict.fromkeys(name for recipe in RECIPES.values() for name in recipe.cited))
    cells = {name: [_cell(recipe, name) for recipe in RECIPES.values()] for name in names}
    differing = [name for name in names if len(set(cells[name])) > 1]
    rows = zip(RECIPES, *(cells[name] for name in differing), strict=True)
    shared = ", ".join(f"{n} {cells[n][0]}" for n in names if n not in differing)
    headers = ("recipe", *(name.replace("_", "\n") for name in differing))
    return "\n".join([table(rows, headers), "", f"In all of them: {shared}.", "", *_legend()])


def _cell(recipe: Recipe, name: str) -> str:
    one = recipe.cited.get(name)
    if one is None:
        return ""
    value = f"{one.value:.3g}" if isinstance(one.value, float) else str(one.value)
    return f"{value} {one.source}"


def _legend() -> list[str]:
    return [f"{key}  {text}" for key, text in SOURCES.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, or 2 for what the user can put right."""
    args = _parser().parse_args(argv)
    others = {
        name: value
        for name, value in vars(args).items()
        if name not in ("recipe", "data", "out", "resume", "size") and value is not None
    }
    try:
        recipe = find_recipe(args.recipe)
        data = open_data(recipe, args.data, args.seed, args.size)
        found = run(recipe, data, args.out, args.resume, **others)
    except FxpruneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return _USER_ERROR
    if _speaks():
        print(f"{recipe.name}\n\n{found}", flush=True)
    return 0


def _speaks() -> bool:
    """Whether this is the first process of those that torchrun started, or the only one."""
    return not int(os.environ.get("RANK", "0"))


class _List(argparse.Action):
    """Print the recipes and leave, as ``--help`` does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(recipe_table())
        sys.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a name that --list prints")
    add("--list", action=_List, nargs=0, help="print the recipes and where their numbers are from")
    add("--data", type=Path, required=True, metavar="DIR", help="folder of the data (or archive)")
    add("--out", type=Path, required=True, metavar="DIR", help="where to write, checkpoints too")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--epochs", type=int, metavar="N", help="passes over the training data (the recipe's)")
    add("--macs", type=float, help="share of the model's MACs to keep (the recipe's)")
    add("--seed", type=int, default=0, help="of weights, data and the controller (0)")
    add("--device", default="auto", help="cpu, cuda, or auto (auto)")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add("--workers", type=int, default=0, metavar="N", help="processes that load images (0)")
    add("--accumulate", type=int, metavar="N", help="compute a batch in N parts, for less memory")
    add("--dense", action="store_true", help="first train the network unpruned, to compare")
    add("--size", type=int, metavar="N", help="height and width of ImageNet's images (224)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
