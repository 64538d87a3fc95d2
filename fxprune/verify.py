"""Proof by computation: two models give the same outputs on the same inputs.

Both models run in the mode they are in. What a run in train mode would change is put back: the
buffers (BatchNorm's running statistics) and the random state, from which both runs start alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import ConfigError, InputError, VerificationError
from fxprune.handovers import Tape, handed_over, region_paths
from fxprune.inputs import (
    ExampleInputs,
    Inputs,
    fit_inputs,
    flatten_outputs,
    iter_leaves,
    map_tensors,
    normalize_inputs,
)
from fxprune.tolerances import relative_tolerance

__all__ = ["Verification", "compare_outputs", "cuda_devices", "full_float32", "verify"]

Outputs = Sequence[tuple[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Verification:
    """What a comparison of two models found.

    Attributes
    ----------
    max_abs_error : float
        Largest absolute difference over all output tensors, in the output's unit.
    max_rel_error : float
        Largest over the output tensors of: largest absolute difference divided by the largest
        magnitude in the reference tensor. No unit.
    passed : bool
        Whether every output tensor is within its tolerance.
    """

    max_abs_error: float
    max_rel_error: float
    passed: bool


def verify(
    gated: nn.Module,
    compact: nn.Module,
    example_inputs: ExampleInputs,
    *,
    rtol: float | None = None,
    atol: float | None = None,
) -> Verification:
    """Check that two models compute the same outputs.

    Parameters
    ----------
    gated : nn.Module
        The reference.
    compact : nn.Module
        The model that must agree with it, in the same mode (train or eval).
    example_inputs : Tensor, tuple, list or dict
        Inputs for both; moved to each model's device and floating dtype.
    rtol : float, optional
        Allowed difference as a share of the largest magnitude in the reference tensor. By default
        the entry of `fxprune.tolerances` for the coarsest floating dtype among the tensor and the
        models' parameters.
    atol : float, optional
        Allowed difference on top, in the output's unit; 0 by default.

    Returns
    -------
    Verification
        The errors; `passed` is always True, since anything else raises.

    Raises
    ------
    VerificationError
        When the outputs differ in structure, shape, dtype or value, when any value is NaN or
        infinite, when there is no value to compare, or when `compact` does not run where `gated`
        does.
    ConfigError
        When an argument has the wrong type or range, or the models are in different modes.
    InputError
        When `gated` does not run on the inputs.

    Notes
    -----
    An output ``a`` of `gated` and ``b`` of `compact` agree when
    ``max|a - b| <= atol + rtol * max|a|``. Both models run without gradients, from the same random
    state and in full float32 precision (no TF32). Neither is changed: buffers, modes, gradients and
    the random state are afterwards what they were. In train mode random layers such as dropout draw
    different masks for layers of different width, so such models agree in eval mode only.

    Of a model that was captured by regions, all that regions hand to the Python code is compared as
    well, and `compact` goes on with what `gated` handed over: code that sorts and selects then
    decides the same in both, where a rounding error alone could make it return other things. The
    errors reported are those of single regions.

    Examples
    --------
    >>> net = nn.Linear(3, 2)
    >>> verify(net, net, torch.zeros(4, 3))
    Verification(max_abs_error=0.0, max_rel_error=0.0, passed=True)
    """
    for name, model in (("gated", gated), ("compact", compact)):
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"The '{name}' argument of verify must be a torch.nn.Module.",
                seen=type(model).__name__,
            )
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and not (_is_number(value) and 0 <= value < math.inf):
            raise ConfigError(
                f"The '{name}' argument of verify must be None or a finite number >= 0.",
                seen=repr(value),
            )
    _check_modes(gated, compact)
    inputs = normalize_inputs(example_inputs)
    cuda = cuda_devices(gated, compact)
    regions = region_paths(gated, compact)
    tape: Tape | None = None
    outputs: list[Outputs] = []
    with torch.no_grad(), full_float32(), _buffers_restored(gated, compact):
        for model in (gated, compact):
            # Each run starts from the caller's random state, which the block puts back at its end.
            with torch.random.fork_rng(devices=cuda), handed_over(model, regions, tape) as tape:
                returned = _run(model, inputs, reference=not outputs)
            outputs.append([*tape, *returned])
    parameters = {p.dtype for model in (gated, compact) for p in model.parameters()}
    return compare_outputs(*outputs, rtol=rtol, atol=atol, dtypes=parameters)


def compare_outputs(
    expected: Outputs,
    actual: Outputs,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    dtypes: set[torch.dtype] | None = None,
) -> Verification:
    """Compare two lists of named outputs.

    Parameters
    ----------
    expected : sequence of (str, Tensor)
        The reference, as returned by `flatten_outputs`.
    actual : sequence of (str, Tensor)
        What must agree with it.
    rtol, atol : float, optional
        As for `verify`.
    dtypes : set of torch.dtype, optional
        Further dtypes that took part in the computation: a default `rtol` allows for the coarsest.

    Returns
    -------
    Verification
        The errors; `passed` is always True.

    Raises
    ------
    VerificationError
        As for `verify`.
    """
    first, second = dict(expected), dict(actual)
    if first.keys() != second.keys():
        missing = [path for path in first if path not in second]
        extra = [path for path in second if path not in first]
        raise VerificationError(
            "The two models return different structures.",
            where=", ".join(missing + extra),
            seen=f"only the reference returns {missing}, only the other model returns {extra}",
            hint="both models must return the same tuples, dicts and tensors",
        )
    if not any(tensor.numel() for tensor in first.values()):
        raise VerificationError(
            "The models return no value that could be compared.",
            seen=_shapes(expected) or "no tensor",
            hint="pass example inputs for which the model returns something",
        )
    max_abs = max_rel = 0.0
    for path, reference in first.items():
        took_part = {reference.dtype}
        if reference.is_floating_point() or reference.is_complex():
            took_part |= dtypes or set()
        allowed = relative_tolerance(took_part) if rtol is None else float(rtol)
        absolute, relative = _compare(path, reference, second[path], allowed, float(atol or 0.0))
        max_abs, max_rel = max(max_abs, absolute), max(max_rel, relative)
    return Verification(max_abs, max_rel, passed=True)


def _compare(path: str, a: Tensor, b: Tensor, rtol: float, atol: float) -> tuple[float, float]:
    """Return the absolute and relative error of one output tensor, or raise."""
    kind_a, kind_b = _describe(a), _describe(b)
    if kind_a != kind_b:
        raise VerificationError(
            "An output differs in shape or dtype.",
            where=path,
            seen=f"reference {kind_a}, other model {kind_b}",
            hint="the two models were not made from the same graph and keep-masks",
        )
    if not a.numel():
        return 0.0, 0.0
    wide = torch.complex128 if a.is_complex() else torch.float64
    x, y = a.detach().to("cpu", wide), b.detach().to("cpu", wide)
    broken = [
        f"{int((~torch.isfinite(value)).sum())} of {value.numel()} values in {name}"
        for name, value in (("the reference", x), ("the other model", y))
        if not torch.isfinite(value).all()
    ]
    if broken:
        raise VerificationError(
            "An output holds NaN or infinity, so nothing is proved.",
            where=path,
            seen=f"{kind_a}: " + ", ".join(broken),
            hint="check the weights and pass example inputs in the range the model is made for",
        )
    difference = (x - y).abs()
    absolute, scale = float(difference.max()), float(x.abs().max())
    relative = absolute / max(scale, torch.finfo(torch.float64).tiny)
    if absolute > atol + rtol * scale:
        worst = [int(i) for i in torch.unravel_index(difference.argmax(), difference.shape)]
        raise VerificationError(
            "The two models do not compute the same output.",
            where=f"{path}, worst at index {worst}",
            seen=f"{kind_a}: absolute error {absolute:.3e}, relative error {relative:.3e}; "
            f"allowed {atol:.1e} + {rtol:.1e} * {scale:.3e}",
            hint="compare in eval mode and in float64 (model.double()) to tell rounding from a "
            "wrong result; pass rtol or atol where the difference is rounding",
        )
    return absolute, relative


def _run(model: nn.Module, inputs: Inputs, *, reference: bool) -> Outputs:
    # A copy: a model may start with an in-place operation.
    args, kwargs = map_tensors(fit_inputs(model, inputs), lambda tensor: tensor.detach().clone())
    try:
        return flatten_outputs(model(*args, **kwargs))
    except Exception as error:
        kind = InputError if reference else VerificationError
        raise kind(
            "The reference model does not run on the example inputs."
            if reference
            else "The compact model does not run on inputs on which the reference runs.",
            where=type(model).__name__,
            seen=f"{_shapes(iter_leaves(inputs))}; {type(error).__name__}: {error}",
            hint="pass example inputs that fit the model's forward"
            if reference
            else "the two models were not made from the same graph and keep-masks",
        ) from error


def _check_modes(gated: nn.Module, compact: nn.Module) -> None:
    others = dict(compact.named_modules())
    for name, module in gated.named_modules():
        other = others.get(name)
        if other is None or module.training == other.training:
            continue
        # A container's own flag has no effect; that of a leaf may.
        if not name or (type(other) is type(module) and not list(module.children())):
            modes = ["train" if m.training else "eval" for m in (module, other)]
            raise ConfigError(
                "The two models are in different modes.",
                where=f"module '{name}'" if name else "the models themselves",
                seen=f"gated in {modes[0]} mode, compact in {modes[1]} mode",
                hint="call .eval() (or .train()) on both before comparing",
            )


@contextmanager
def _buffers_restored(*models: nn.Module) -> Iterator[None]:
    """Put every buffer back: the same tensor object with the same values."""
    saved = [
        (module, name, buffer, buffer.detach().clone())
        for model in models
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in saved:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                # Writing to an unchanged buffer would break a backward pass still to come.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 in full precision on NVIDIA hardware too, where TF32 keeps only 10 bits.

    Yields
    ------
    None
        The settings in force before come back afterwards.
    """
    switches: list[Any] = [getattr(torch.backends.cudnn, kind) for kind in ("conv", "rnn")]
    switches.append(torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    try:
        for switch in switches:
            switch.fp32_precision = "ieee"
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def cuda_devices(*models: nn.Module) -> list[int]:
    """List the CUDA devices on which models have parameters or buffers.

    Parameters
    ----------
    *models : nn.Module
        The models.

    Returns
    -------
    list of int
        Device numbers, in ascending order.
    """
    tensors = (t for model in models for t in (*model.parameters(), *model.buffers()))
    return sorted({t.device.index for t in tensors if t.device.type == "cuda"})


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _shapes(leaves: Sequence[tuple[str, object]] | Iterator[tuple[str, object]]) -> str:
    return ", ".join(_describe(leaf) for _, leaf in leaves if isinstance(leaf, Tensor))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
