"""Example inputs and model outputs as plain trees of tensors.

A user hands over example inputs in the shape that is convenient: one tensor, a tuple of positional
arguments, or a dict of keyword arguments. Everything behind the facade works on one form,
``(args, kwargs)``. Arguments and outputs may nest tuples, lists, dicts, named tuples and
dataclasses; the values at the ends of such a tree are its *leaves*, each named by the path that
leads to it (``output['boxes'][0]``).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.errors import ConfigError, InputError

__all__ = [
    "ExampleInputs",
    "Inputs",
    "batch_size",
    "check_count",
    "fit_inputs",
    "flatten_outputs",
    "iter_leaves",
    "map_leaves",
    "map_tensors",
    "normalize_inputs",
    "to_like",
    "with_batch",
]

ExampleInputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""What a user may pass as example inputs: a tensor, positional arguments, or keyword arguments."""

Inputs: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""The one form used inside: ``(args, kwargs)``."""

_HINT = "pass a tensor, a tuple of positional arguments, or a dict of keyword arguments"
_FILL_SEED = 0


def normalize_inputs(example: ExampleInputs) -> Inputs:
    """Bring example inputs into the form ``(args, kwargs)``.

    Parameters
    ----------
    example : Tensor, tuple, list or mapping
        One tensor is the only positional argument; a tuple or list holds the positional arguments;
        a mapping with string keys holds the keyword arguments.

    Returns
    -------
    tuple of (tuple, dict)
        Positional and keyword arguments. Tensors are passed on as they are, not copied.

    Raises
    ------
    InputError
        When `example` is none of these, has keys that are not strings, or holds no tensor at all.

    Examples
    --------
    >>> args, kwargs = normalize_inputs(torch.zeros(2, 3))
    >>> len(args), kwargs
    (1, {})
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[Any, Any] = {}
    if isinstance(example, Tensor):
        args = (example,)
    elif isinstance(example, tuple | list):
        args = tuple(example)
    elif isinstance(example, Mapping):
        kwargs = dict(example)
        wrong = next((key for key in kwargs if not isinstance(key, str)), None)
        if wrong is not None:
            raise InputError(
                "The keys of example_inputs must be argument names.",
                seen=f"key {wrong!r} of type {type(wrong).__name__}",
                hint=_HINT,
            )
    else:
        raise InputError(
            "The 'example_inputs' argument must be a tensor, a tuple, a list or a dict.",
            seen=f"{type(example).__name__}",
            hint=_HINT,
        )
    if not any(isinstance(leaf, Tensor) for _, leaf in iter_leaves((args, kwargs))):
        raise InputError(
            "The example inputs hold no tensor.",
            seen=f"{type(example).__name__} of length {len(example)}",
            hint=_HINT,
        )
    return args, kwargs


def batch_size(inputs: Inputs) -> int | None:
    """Return the common batch size: the leading size of the first tensor that has a dimension.

    Parameters
    ----------
    inputs : tuple of (tuple, dict)
        As returned by `normalize_inputs`.

    Returns
    -------
    int or None
        Number of examples; None when every tensor is a scalar.
    """
    for _, leaf in iter_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.dim() >= 1:
            return int(leaf.shape[0])
    return None


def with_batch(inputs: Inputs, n: int, *, fill: Literal["normal", "repeat"] = "normal") -> Inputs:
    """Return the inputs with their batch dimension resized to `n`.

    Only tensors whose leading size equals `batch_size` are resized; all else is passed on as it is,
    and so is everything when the batch size is `n` already.

    Parameters
    ----------
    inputs : tuple of (tuple, dict)
        As returned by `normalize_inputs`.
    n : int
        Wanted batch size, at least 1.
    fill : {"normal", "repeat"}
        Where new values come from. ``"normal"``: floating and complex tensors are drawn anew from
        the standard normal distribution, always the same values and without touching torch's global
        random state; integer and boolean tensors repeat their rows. ``"repeat"``: every tensor
        repeats its rows.

    Returns
    -------
    tuple of (tuple, dict)
        New arguments; the given tensors are not changed.

    Raises
    ------
    ConfigError
        When `n` is not an integer of at least 1.
    InputError
        When no tensor has a batch dimension, or the batch is empty.
    """
    check_count("n", n)
    batch = batch_size(inputs)
    if not batch:
        raise InputError(
            "The example inputs have no batch to resize.",
            seen="only scalars" if batch is None else "a leading dimension of size 0",
            hint="pass tensors of shape (N, ...) with N >= 1",
        )
    if batch == n:
        return inputs
    generator = torch.Generator().manual_seed(_FILL_SEED)

    def resize(tensor: Tensor) -> Tensor:
        if tensor.dim() < 1 or tensor.shape[0] != batch:
            return tensor
        if fill == "normal" and (tensor.is_floating_point() or tensor.is_complex()):
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            new = torch.randn((n, *tensor.shape[1:]), generator=generator, dtype=wide)
            return new.to(dtype=tensor.dtype, device=tensor.device)
        return tensor.detach()[torch.arange(n, device=tensor.device) % batch]

    resized: Inputs = map_tensors(inputs, resize)
    return resized


def to_like(
    inputs: Inputs, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> Inputs:
    """Return the inputs on another device and in another floating dtype.

    Parameters
    ----------
    inputs : tuple of (tuple, dict)
        As returned by `normalize_inputs`.
    dtype : torch.dtype, optional
        Floating dtype for the floating tensors; integer, boolean and complex tensors keep theirs.
    device : torch.device or str, optional
        Device for all tensors but those that are only shapes (on the meta device).

    Returns
    -------
    tuple of (tuple, dict)
        The converted arguments; tensors that fit already are passed on, not copied.

    Raises
    ------
    ConfigError
        When `dtype` is not a floating dtype.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(
            "The 'dtype' argument of to_like must be a floating dtype.", seen=f"{dtype}"
        )

    def convert(tensor: Tensor) -> Tensor:
        wanted = dtype if tensor.is_floating_point() else None
        return tensor.to(device=None if tensor.is_meta else device, dtype=wanted)

    converted: Inputs = map_tensors(inputs, convert)
    return converted


def fit_inputs(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return the inputs on the device of `model`, and in its floating dtype if it has exactly one.

    Parameters
    ----------
    model : nn.Module
        Its parameters decide; a model without parameters leaves the inputs as they are.
    inputs : tuple of (tuple, dict)
        As returned by `normalize_inputs`.

    Returns
    -------
    tuple of (tuple, dict)
        The converted arguments.
    """
    parameters = list(model.parameters())
    if not parameters:
        return inputs
    dtypes = {p.dtype for p in parameters if p.is_floating_point()}
    return to_like(inputs, dtypes.pop() if len(dtypes) == 1 else None, parameters[0].device)


def flatten_outputs(out: object) -> list[tuple[str, Tensor]]:
    """List every tensor of a model's output with the path that leads to it.

    Parameters
    ----------
    out : object
        A tensor, number or None, or tuples, lists, mappings, named tuples and dataclasses of such.

    Returns
    -------
    list of (str, Tensor)
        In the order of the structure. A single tensor is called ``output``, others for example
        ``output[0]``, ``output['boxes']`` or ``output.logits``. Numbers become tensors without
        dimensions; None is left out.

    Raises
    ------
    ConfigError
        When a value in the output is of any other type.

    Examples
    --------
    >>> [path for path, _ in flatten_outputs({"a": torch.zeros(1), "b": (torch.zeros(2), None)})]
    ["output['a']", "output['b'][0]"]
    """
    found: list[tuple[str, Tensor]] = []
    for path, leaf in iter_leaves(out, "output"):
        if isinstance(leaf, Tensor):
            found.append((path, leaf))
        elif isinstance(leaf, bool | int | float | complex):
            wide = torch.float64 if isinstance(leaf, float) else None
            found.append((path, torch.tensor(leaf, dtype=wide)))
        elif leaf is not None:
            raise ConfigError(
                "A model's output may hold tensors, numbers and None only.",
                where=path,
                seen=f"{type(leaf).__name__}",
                hint="let the model return tuples, lists, dicts or dataclasses of tensors",
            )
    return found


def iter_leaves(value: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` for everything in `value` that is not a container, in order.

    Parameters
    ----------
    value : object
        A tree of tuples, lists, mappings, named tuples and dataclass instances.
    path : str
        Name of `value` itself.

    Yields
    ------
    tuple of (str, object)
        Path and leaf.
    """
    children = _children(value)
    if children is None:
        yield path, value
        return
    for step, child in children:
        yield from iter_leaves(child, path + step)


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Rebuild a tree with `function` applied to its tensors; other leaves are kept.

    Parameters
    ----------
    value : object
        A tree as for `iter_leaves`.
    function : callable
        Takes a tensor and returns what stands in its place.

    Returns
    -------
    object
        A tree of the same containers.
    """
    return map_leaves(value, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """Rebuild a tree with `function` applied to every leaf, in the order of `iter_leaves`.

    Parameters
    ----------
    value : object
        A tree as for `iter_leaves`.
    function : callable
        Takes a leaf and returns what stands in its place.

    Returns
    -------
    object
        A tree of the same containers; a mapping of a type of its own becomes a dict.
    """
    children = _children(value)
    if children is None:
        return function(value)
    new = [map_leaves(child, function) for _, child in children]
    if isinstance(value, Mapping):
        return dict(zip(value, new, strict=True))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*new)
    if isinstance(value, list):
        return new
    if isinstance(value, tuple):
        return tuple(new)
    # Not dataclasses.replace: it refuses fields that __init__ does not take.
    copied = copy.copy(value)
    for field, child in zip(dataclasses.fields(copied), new, strict=True):
        object.__setattr__(copied, field.name, child)
    return copied


def check_count(name: str, value: object, *, least: int = 1) -> int:
    """Return `value` if it is an integer of at least `least`.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : object
        What was given.
    least : int
        Smallest value allowed.

    Returns
    -------
    int
        The value itself.

    Raises
    ------
    ConfigError
        When it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"The '{name}' argument must be an integer >= {least}.", seen=f"{value!r}"
        )
    return value


def _children(value: object) -> list[tuple[str, Any]] | None:
    """List the named children of a container; None for a leaf."""
    # Mappings come first: a library's output class is often a mapping and a dataclass at once.
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", child) for key, child in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, tuple | list):
        return [(f"[{i}]", child) for i, child in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            (f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)
        ]
    return None
