"""What can be said of a model without a file: multiply-accumulates, parameters, its inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune._compat import no_attention_fastpath
from fxprune.errors import InputError
from fxprune.gated import GatedModule
from fxprune.gated_leaves import GatedRecurrent
from fxprune.inputs import (
    ExampleInputs,
    Inputs,
    fit_inputs,
    iter_leaves,
    map_tensors,
    normalize_inputs,
)
from fxprune.modes import in_mode
from fxprune.runtime import first_lines
from fxprune.settings import Recipe
from fxprune.statistics import plain_type

__all__ = [
    "count_macs",
    "count_params",
    "gated_inputs",
    "input_shapes",
    "module_kinds",
]


def count_macs(model: nn.Module, example_inputs: ExampleInputs) -> int:
    """Count the multiply-accumulates of one forward, in eval mode.

    Parameters
    ----------
    model : nn.Module
        Run once; each of its modules gets its mode back.
    example_inputs : Tensor, tuple, list or dict
        Moved to the model's device and floating dtype.

    Returns
    -------
    int
        Multiply-accumulates of convolutions, matrix products and attention: half of what
        `torch.utils.flop_counter.FlopCounterMode` counts. The batch is included.

    Raises
    ------
    InputError
        When the model does not run on the inputs.

    Examples
    --------
    >>> count_macs(nn.Linear(8, 4), torch.zeros(2, 8))
    64
    """
    inputs = fit_inputs(model, normalize_inputs(example_inputs))
    args, kwargs = map_tensors(inputs, lambda tensor: tensor.detach().clone())
    counter = FlopCounterMode(display=False)
    try:
        with in_mode(model, training=False), torch.no_grad(), no_attention_fastpath(), counter:
            model(*args, **kwargs)
    except Exception as error:
        raise InputError(
            "The model does not run on the example inputs.",
            where=type(model).__name__,
            seen=f"{', '.join(map(str, input_shapes(inputs)))}; {first_lines(error)}",
            hint="pass example inputs that fit the model's forward",
        ) from error
    return int(counter.get_total_flops()) // 2


def count_params(model: nn.Module) -> int:
    """Count the parameters; one that is used in several places counts once."""
    return sum(p.numel() for p in model.parameters())


def input_shapes(inputs: Inputs) -> tuple[tuple[int, ...], ...]:
    """Return the shape of every tensor among the inputs.

    Parameters
    ----------
    inputs : tuple of (tuple, dict)
        As returned by `fxprune.inputs.normalize_inputs`.

    Returns
    -------
    tuple of tuple of int
        In the order of the arguments.
    """
    leaves = (leaf for _, leaf in iter_leaves(inputs))
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


def module_kinds(model: nn.Module) -> dict[str, str]:
    """Return the type name of every module by its path; gated twins go by their plain names.

    Parameters
    ----------
    model : nn.Module
        A module that occurs several times is listed under all its paths.

    Returns
    -------
    dict of str to str
        The model itself has the path ``""``.
    """
    return {
        path: type(module.to_plain()).__name__
        if isinstance(module, GatedRecurrent)
        else plain_type(module).__name__
        for path, module in model.named_modules(remove_duplicate=False)
    }


def gated_inputs(gated: GatedModule) -> Inputs:
    """Return inputs of the shapes and dtypes that a model was gated with, given or guessed.

    Parameters
    ----------
    gated : GatedModule
        Only read.

    Returns
    -------
    tuple of (tuple, dict)
        Tensors on the CPU: floating ones from the standard normal distribution, always the same
        values; others zero.
    """
    described = Recipe.parse(gated.settings.recipe({})).inputs
    generator = torch.Generator().manual_seed(0)

    def fill(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    filled: Inputs = map_tensors(described, fill)
    return filled
