"""torch.onnx behind one function: any arguments and outputs, readable names, no chatter."""

from __future__ import annotations

import inspect
import io
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import onnxscript
import torch
from torch import Tensor, nn

from fxprune.errors import ExportError
from fxprune.inputs import Inputs, batch_size, iter_leaves, map_leaves, map_tensors, with_batch
from fxprune.onnx_trace import trace_onnx
from fxprune.runtime import plain_name

__all__ = ["SINGLE_FILE_BYTES", "carries_batch", "named_tensors", "write_onnx"]

SINGLE_FILE_BYTES = 1_900_000_000
"""Weights of this size get a file of their own: protobuf ends at 2 GiB, less the graph."""

_TALKATIVE = ("torch", "onnxscript", "onnx_ir")
_SOURCE_LINES = "pkg.torch.onnx.stack_trace"


class _Slot(int):
    """Number of the input tensor that goes here in the arguments of the model."""


class _Flat(nn.Module):
    """The model as a function from tensors to tensors, whatever its arguments and outputs are.

    torch.onnx alone would take a dict at the end of the arguments for keyword arguments, and would
    not look into dataclasses.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        slots = itertools.count()
        self.arguments = map_tensors(inputs, lambda _: _Slot(next(slots)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = map_leaves(
            self.arguments, lambda leaf: tensors[leaf] if isinstance(leaf, _Slot) else leaf
        )
        return tuple(leaf for _, leaf in named_tensors(self.model(*args, **kwargs)))


def write_onnx(
    model: nn.Module,
    path: Path,
    inputs: Inputs,
    outputs: Sequence[str],
    *,
    dynamic_batch: bool,
    opset: int | None,
    traced: bool = False,
) -> int:
    """Write a model as ONNX, unchecked; weights too large for one file go beside it.

    Parameters
    ----------
    model : nn.Module
        The model, in eval mode.
    path : Path
        The file to write.
    inputs : tuple of (tuple, dict)
        Inputs the model runs on.
    outputs : sequence of str
        Paths of the output tensors, which become their names.
    dynamic_batch : bool
        Whether the leading size of the inputs that carry the batch stays open.
    opset : int or None
        Version of the ONNX operator set; None for the one torch recommends.
    traced : bool
        Follow one run of the model (see `fxprune.onnx_trace`) rather than its code.

    Returns
    -------
    int
        The version of the operator set that was written.

    Raises
    ------
    ExportError
        When the version written is not the one asked for. torch's own errors pass through.
    """
    batch = batch_size(inputs)
    open_sizes = tuple(
        {0: torch.export.Dim("batch")} if carries_batch(tensor, batch) else None
        for _, tensor in named_tensors(inputs)
    )
    if dynamic_batch and batch == 1:
        inputs = with_batch(inputs, 2)  # torch.export takes a size of 1 for a constant
    names: set[str] = set()
    flat = _Flat(model, inputs).eval()
    tensors = tuple(tensor for _, tensor in named_tensors(inputs))
    taken = _distinct(_input_names(model, inputs), names)
    given = _distinct(
        (plain_name(step.removeprefix("output"), "output") for step in outputs), names
    )
    if traced:
        is_open = [dynamic_batch and size is not None for size in open_sizes]
        with _quiet():
            trace_onnx(flat, tensors, path, opset, taken, given, is_open)
        loaded = onnxscript.ir.load(path)
        written = _tidy(loaded, names)
        onnxscript.ir.save(loaded, path)
        return written
    with _quiet():
        program = torch.onnx.export(
            flat,
            tensors,
            dynamo=True,
            verbose=False,
            opset_version=opset,
            dynamic_shapes=(open_sizes,) if dynamic_batch else None,
            input_names=taken,
            output_names=given,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program.")
    written = _tidy(program.model, names)
    if opset not in {None, written}:
        raise ExportError(
            "torch cannot write the model in this version of the operator set.",
            seen=f"asked for {opset}, got {written}",
            hint=f"pass opset={written}",
        )
    stored = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    program.save(path, external_data=sum(stored.values()) >= SINGLE_FILE_BYTES)
    return written


def _tidy(program: Any, names: set[str]) -> int:
    """Give values their names, take out source lines; return the version of the operator set."""
    graph = program.graph
    # torch gives an output its name even where a value in between has it already.
    outer = {id(value) for value in (*graph.inputs, *graph.outputs)}
    inner = [
        value for node in graph.all_nodes() for value in node.outputs if id(value) not in outer
    ]
    taken = names | {value.name or "" for value in (*inner, *graph.initializers.values())}
    for value in inner:
        if value.name in names:
            value.name = _distinct([value.name], taken)[0]
    for weight in list(graph.initializers.values()):
        name = (weight.name or "").removeprefix("model.")
        weight.name = weight.name if name == weight.name else _distinct([name], taken)[0]
    for node in graph.all_nodes():
        node.metadata_props.pop(_SOURCE_LINES, None)
        node.doc_string = None
    return int(program.opset_imports[""])


def named_tensors(value: object, root: str = "") -> list[tuple[str, Tensor]]:
    """List the tensors in a tree with their paths.

    Parameters
    ----------
    value : object
        A tree as for `iter_leaves`.
    root : str
        Name of `value` itself.

    Returns
    -------
    list of (str, Tensor)
        In the order of the tree.
    """
    return [(path, leaf) for path, leaf in iter_leaves(value, root) if isinstance(leaf, Tensor)]


def carries_batch(tensor: Tensor, batch: int | None) -> bool:
    """Return whether the leading size of a tensor is the batch size.

    Parameters
    ----------
    tensor : Tensor
        An input.
    batch : int or None
        The common batch size.

    Returns
    -------
    bool
        False for a tensor without dimensions.
    """
    return tensor.dim() >= 1 and tensor.shape[0] == batch


def _input_names(model: nn.Module, inputs: Inputs) -> Iterator[str]:
    """Yield a name per input tensor: the parameter of `forward` it belongs to, and its path."""
    args, kwargs = inputs
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    for index, arg in enumerate(args):
        root = named[index] if index < len(named) else f"input_{index}"
        yield from (plain_name(path, "input") for path, _ in named_tensors(arg, root))
    yield from (plain_name(path, "input") for path, _ in named_tensors(kwargs))


def _distinct(names: Iterable[str], taken: set[str]) -> list[str]:
    """Return the names with repeated ones numbered; add them all to `taken`."""
    distinct = []
    for name in names:
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        distinct.append(free)
    return distinct


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's exporter from warning, logging and printing about its own workings."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
