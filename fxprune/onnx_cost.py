"""What an ONNX file costs, read from the file alone: multiply-accumulates and stored weights.

With ``out`` the elements of an operator's result, and its weights of shape ``w``::

    Conv            out * w[1] * w[2] * ..        (w[1] is the width of one group)
    ConvTranspose   in  * w[1] * w[2] * ..
    MatMul, Gemm    out * K                       (K is the length that is summed over)

These are the operators that ``torch.utils.flop_counter`` counts in the model the file came from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper, shape_inference
from torch import Tensor

from fxprune.errors import InputError, LoadError
from fxprune.runtime import first_lines

__all__ = ["OnnxCost", "onnx_cost", "onnx_inputs"]

Shape = tuple[int, ...]

_FLOATING = frozenset(
    {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}
)
_NOT_COUNTED = frozenset(
    "Attention ConvInteger DeformConv Einsum GRU If LSTM Loop MatMulInteger QLinearConv "
    "QLinearMatMul RNN Scan".split()
)


@dataclass(frozen=True, slots=True)
class OnnxCost:
    """What one ONNX file costs.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of one run, batch included, without the operators in `uncounted`.
    params : int
        Floating-point values stored in the file. Export folds BatchNorm into convolutions, so they
        may be fewer than the parameters of the model.
    file_bytes : int
        Size of the file in bytes, with that of its weights when they lie beside it.
    uncounted : tuple of str
        Types of the operators that do arithmetic but were not counted.
    """

    macs: int
    params: int
    file_bytes: int
    uncounted: tuple[str, ...]


def onnx_cost(path: str | os.PathLike[str], shapes: Sequence[Shape]) -> OnnxCost:
    """Count what an ONNX file costs at given input shapes.

    Parameters
    ----------
    path : str or PathLike
        The file.
    shapes : sequence of tuple of int
        Shape of every input, in the file's order.

    Returns
    -------
    OnnxCost
        MACs, weights and bytes.

    Raises
    ------
    LoadError
        When the file cannot be read.
    InputError
        When the number of shapes is not that of the file's inputs, or they do not fit.
    """
    model = _load(path)
    graph = model.graph
    inputs = _inputs(graph)
    if len(shapes) != len(inputs):
        raise InputError(
            "The inputs do not fit the ONNX file.",
            where=os.fspath(path),
            seen=f"{len(shapes)} given, the file takes {[value.name for value in inputs]}",
            hint="pass one shape per input",
        )
    stored = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known = {**_infer(model, shapes, path), **stored}
    macs, uncounted = 0, set()
    for node in graph.node:
        found = _node_macs(node, known)
        if found is None:
            uncounted.add(node.op_type)
        else:
            macs += found
    beside = Path(f"{os.fspath(path)}.data")
    size = sum(file.stat().st_size for file in (Path(path), beside) if file.is_file())
    params = sum(math.prod(t.dims) for t in graph.initializer if t.data_type in _FLOATING)
    return OnnxCost(macs, params, size, tuple(sorted(uncounted)))


def onnx_inputs(path: str | os.PathLike[str]) -> tuple[Tensor, ...]:
    """Make inputs that an ONNX file takes, one example at a time.

    Parameters
    ----------
    path : str or PathLike
        The file.

    Returns
    -------
    tuple of Tensor
        In the file's order; a free leading size is 1. Floating inputs come from the standard normal
        distribution, always the same values; others are zero.

    Raises
    ------
    LoadError
        When the file cannot be read.
    InputError
        When a size other than the leading one is free.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for value in _inputs(_load(path).graph):
        kind = value.type.tensor_type
        sizes = [d.dim_value for d in kind.shape.dim]
        if 0 in sizes[1:]:
            raise InputError(
                f"The input {value.name!r} of the ONNX file has sizes that are free.",
                where=os.fspath(path),
                seen=str([d.dim_param or d.dim_value for d in kind.shape.dim]),
                hint="say the shape: --input 1,3,224,224 on the command line",
            )
        shape = [size or 1 for size in sizes]
        array_dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        dtype = getattr(torch, str(array_dtype), torch.float32)
        values = torch.randn(shape, generator=generator)
        made.append(
            values.to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        )
    return tuple(made)


def _load(path: str | os.PathLike[str]) -> onnx.ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise LoadError(
            "The file is not an ONNX model that can be read.",
            where=os.fspath(path),
            seen=first_lines(error),
            hint="check that the file exists and is complete",
        ) from error
    if not model.graph.output:  # an empty or foreign file may parse as a model without anything
        raise LoadError("The file holds no ONNX graph.", where=os.fspath(path))
    return model


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def _infer(
    model: onnx.ModelProto, shapes: Sequence[Shape], path: str | os.PathLike[str]
) -> dict[str, Shape]:
    """Return the shape of every tensor at these inputs, as far as it can be known."""
    sizes: dict[str, int] = {}  # of free axes, by their names in the file
    for value, shape in zip(_inputs(model.graph), shapes, strict=True):
        dims = value.type.tensor_type.shape.dim
        fits = len(dims) == len(shape)
        if not fits or any(d.dim_value not in (0, n) for d, n in zip(dims, shape, strict=True)):
            raise InputError(
                "The inputs do not fit the ONNX file.",
                where=os.fspath(path),
                seen=f"{value.name} given as {tuple(shape)}, the file takes "
                f"{[d.dim_param or d.dim_value for d in dims]}",
                hint="pass inputs of the shape that the file takes",
            )
        for dim, size in zip(dims, shape, strict=True):
            sizes[dim.dim_param] = size
            dim.dim_value = size
    noted = _known((*model.graph.value_info, *model.graph.output), sizes)
    # Notes on free sizes would keep the inference from finding out what they are at these inputs.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return noted | _known((*graph.value_info, *graph.input, *graph.output), {})


def _known(values: Iterable[onnx.ValueInfoProto], sizes: Mapping[str, int]) -> dict[str, Shape]:
    """Return the shapes in which every size is a number or the name of a known one."""
    known = {}
    for value in values:
        kind = value.type.tensor_type
        dims = [d.dim_value or sizes.get(d.dim_param or "?") for d in kind.shape.dim]
        if kind.HasField("shape") and None not in dims:
            known[value.name] = tuple(d for d in dims if d is not None)
    return known


def _node_macs(node: onnx.NodeProto, known: Mapping[str, Shape]) -> int | None:
    """Return the multiply-accumulates of a node; None when it has some that cannot be counted."""
    if node.op_type in _NOT_COUNTED:
        return None
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return 0
    first, second = known.get(node.input[0]), known.get(node.input[1])
    out = known.get(node.output[0])
    if first is None or second is None or out is None:
        return None
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(second[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(first) * math.prod(second[1:])
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return math.prod(out) * first[0 if transposed else -1]
