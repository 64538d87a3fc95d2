"""What a model is before any file is written: multiply-accumulates, parameters, the inputs it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from fxprune._compat import no_attention_fastpath
from fxprune.capture.guess import candidate_inputs
from fxprune.errors import InputError
from fxprune.gated import GatedModule
from fxprune.inputs import (
    ExampleInputs,
    Inputs,
    fit_inputs,
    iter_leaves,
    map_tensors,
    normalize_inputs,
)
from fxprune.runtime import first_lines

__all__ = ["count_macs", "count_params", "evaluating", "guess_inputs", "input_shapes"]


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
        with evaluating(model), torch.no_grad(), no_attention_fastpath(), counter:
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


def guess_inputs(gated: GatedModule) -> Tensor | None:
    """Return an input at which a gated model has the costs that its analysis found.

    Parameters
    ----------
    gated : GatedModule
        Run on meta tensors only.

    Returns
    -------
    Tensor or None
        The likely shapes that `auto_gate` tries are tried here: one fits when the model runs on it
        and has as many multiply-accumulates. Floating inputs come from the standard normal
        distribution (always the same values), integer ones are zeros. None when no shape fits.
    """
    tensors = {**dict(gated.named_parameters()), **dict(gated.named_buffers())}
    state = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    wanted = gated.cost_of(np.ones(gated.plan.n_units, dtype=bool)).macs
    try:
        guesses = list(candidate_inputs(gated, gated.graph))
    except InputError:
        return None
    for guess in guesses:
        counter = FlopCounterMode(display=False)
        try:
            with evaluating(gated), torch.no_grad(), no_attention_fastpath(), counter:
                functional_call(gated, state, (guess,))
        except Exception:  # noqa: BLE001 - a wrong guess may fail in any way
            continue
        if counter.get_total_flops() // 2 == wanted:
            return _filled(guess)
    return None


def _filled(guess: Tensor) -> Tensor:
    if not guess.is_floating_point():
        return torch.zeros(guess.shape, dtype=guess.dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(guess.shape, generator=generator).to(guess.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode; give each module its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for module, mode in modes:
            module.training = mode
