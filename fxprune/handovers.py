"""What parts of a model hand to the Python code around them: noted in one run, put into another.

A model captured by regions is Python between graphs. That Python may decide (sort, keep the best,
suppress), so two runs that differ by rounding may return different things altogether, though every
part computes the same. If each part returns the same on the same arguments, and the Python code is
the same, the models are the same. To see that, one run notes what each part returns; the other is
given these very tensors, after its own were noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._compat import storage_key
from fxprune.borders import Borders
from fxprune.gated import GatedModule
from fxprune.inputs import iter_leaves
from fxprune.notes import RECIPE, read_note
from fxprune.settings import Recipe

__all__ = ["Tape", "handed_over", "region_paths"]

Tape = list[tuple[str, Tensor]]
"""Copies of the tensors that regions returned, in order, each named by region, call and place."""


def region_paths(*models: nn.Module) -> tuple[str, ...]:
    """Return the paths of the regions that models have, gated or compact.

    Parameters
    ----------
    *models : nn.Module
        Two forms of one model: what one of them knows holds for all.

    Returns
    -------
    tuple of str
        Empty when no model was captured by regions.
    """
    for model in models:
        borders = _borders(model)
        if borders:
            return Borders.from_json(borders).paths
    return ()


@contextmanager
def handed_over(
    model: nn.Module, paths: Sequence[str], instead: Tape | None = None
) -> Iterator[Tape]:
    """Note what regions return while the block runs the model.

    Parameters
    ----------
    model : nn.Module
    paths : sequence of str
        The regions; none of them lies in another.
    instead : list of (str, Tensor), optional
        What another form of the model returned: once a result is noted, these values take its
        place. A result that has another shape or dtype, or lies in memory of the model's own,
        stays as it is.

    Yields
    ------
    list of (str, Tensor)
        It grows while the model runs.
    """
    tape: Tape = []
    calls = dict.fromkeys(paths, 0)
    values = dict(instead or ())
    own = {storage_key(t) for t in (*model.parameters(), *model.buffers()) if t.numel()}

    def noting(path: str) -> Any:
        def note(module: nn.Module, args: Any, result: Any) -> None:
            number = calls[path]
            calls[path] += 1
            for name, leaf in iter_leaves(result, f"{path}(call {number})"):
                if isinstance(leaf, Tensor):
                    tape.append((name, leaf.detach().clone()))
                    if name in values and storage_key(leaf) not in own:
                        _overwrite(leaf, values[name])

        return note

    hooks = [model.get_submodule(path).register_forward_hook(noting(path)) for path in paths]
    try:
        yield tape
    finally:
        for hook in hooks:
            hook.remove()


def _overwrite(tensor: Tensor, value: Tensor) -> None:
    """Write values over a tensor in place, so that it stays a view of what it is a view of."""
    spread = any(
        stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    if tensor.shape == value.shape and tensor.dtype == value.dtype and not spread:
        with torch.no_grad():
            tensor.copy_(value)


def _borders(model: nn.Module) -> str:
    """Return what a gated model knows of its borders, or the recipe of a compact one tells."""
    if isinstance(model, GatedModule):
        return model.settings.borders
    recipe = read_note(model, RECIPE)
    return Recipe.parse(recipe).borders if isinstance(recipe, str) else ""
