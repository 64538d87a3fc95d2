"""ATen operators, as torch.export writes them, in the spellings that people use.

``aten.view.default(x, [n, 8])`` becomes ``x.view([n, 8])``, ``aten.layer_norm.default(..)``
``F.layer_norm(..)``. The two compute the same; all passes then see one spelling, and the captured
graph reads like a forward. An operator that torch's functions or methods do not offer under its own
name and argument order, and that is not listed here, stays what it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune._compat import OpOverload, op_name

__all__ = ["spell"]

Spelling = tuple[str, Any, tuple[Any, ...], dict[str, Any]]  # op, target, args, kwargs
_END = 2**63 - 1


def spell(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], rank: int) -> Spelling:
    """Return how to write a call of an ATen operator.

    Parameters
    ----------
    target : callable
        An operator overload, or any function (which stays itself).
    args, kwargs
        Its arguments.
    rank : int
        Number of axes of the first argument.

    Returns
    -------
    tuple (op, target, args, kwargs)
        As for `torch.fx.Graph.create_node`.
    """
    if not isinstance(target, OpOverload):
        return "call_function", target, args, dict(kwargs)
    space, _, name = op_name(target).partition("::")
    if space != "aten":
        return "call_function", target, args, dict(kwargs)
    given = {k: v for k, v in kwargs.items() if not _says_nothing(k, v)}
    listed = _LISTED.get(name)
    if listed is not None:
        found = listed(_named(target, args, given), rank)
        if found is not None:
            return found
    return _by_name(target, name, args, given)


def _says_nothing(key: str, value: Any) -> bool:
    return (key == "pin_memory" and not value) or (
        key == "layout" and value in (None, torch.strided)
    )


def _named(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments by their names in the schema, defaults included."""
    values = {}
    for place, argument in enumerate(target._schema.arguments):
        if place < len(args):
            values[argument.name] = args[place]
        elif argument.name in kwargs:
            values[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            values[argument.name] = argument.default_value
    return values


def _by_name(
    target: OpOverload, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Spelling:
    """Take the function or method that torch generates from the operator's own schema."""
    if name.startswith("_"):
        return "call_function", target, args, kwargs
    is_method = isinstance(getattr(Tensor, name, None), _METHOD) and bool(args)
    if name.endswith("_") and is_method:
        return "call_method", name, args, kwargs
    for space in (torch, F):
        function = getattr(space, name, None)
        if isinstance(function, BuiltinFunctionType):
            return "call_function", function, args, kwargs
    if is_method:
        return "call_method", name, args, kwargs
    return "call_function", target, args, kwargs


_METHOD = type(Tensor.view)

Values = Mapping[str, Any]
Listed = Callable[[Values, int], Spelling | None]


def _function(target: Callable[..., Any], *names: str, **fixed: Any) -> Listed:
    """Return a spelling that passes these arguments of the schema, in this order."""
    return lambda v, rank: ("call_function", target, tuple(v[n] for n in names), dict(fixed))


def _method(target: str, *names: str) -> Listed:
    return lambda v, rank: ("call_method", target, tuple(v[n] for n in names), {})


def _slice(v: Values, rank: int) -> Spelling:
    stop = None if v["end"] == _END else v["end"]
    return _indexed(v, rank, slice(v["start"] or None, stop, None if v["step"] == 1 else v["step"]))


def _select(v: Values, rank: int) -> Spelling:
    return _indexed(v, rank, v["index"])


def _indexed(v: Values, rank: int, entry: Any) -> Spelling:
    before = (slice(None),) * (v["dim"] % max(rank, 1))
    return "call_function", operator.getitem, (v["self"], (*before, entry)), {}


def _index(v: Values, rank: int) -> Spelling:
    entries = tuple(slice(None) if i is None else i for i in v["indices"])
    return "call_function", operator.getitem, (v["self"], entries), {}


def _view(v: Values, rank: int) -> Spelling:
    return "call_method", "view", (v["self"], v.get("size", v.get("dtype"))), {}


def _to(v: Values, rank: int) -> Spelling | None:
    if "other" in v:
        return None
    kept = {k: v[k] for k in ("dtype", "device") if v.get(k) is not None}
    more = {k: v[k] for k in ("copy", "memory_format") if v.get(k)}
    return "call_method", "to", (v["self"],), {**kept, **more}


def _split(v: Values, rank: int) -> Spelling:
    sizes = v.get("split_size", v.get("split_sizes"))
    return "call_function", torch.split, (v["self"], sizes), {"dim": v["dim"]}


def _convolution(v: Values, rank: int) -> Spelling | None:
    ways = len(v["stride"])
    if rank != ways + 2:
        return None
    target = getattr(F, f"conv_transpose{ways}d" if v["transposed"] else f"conv{ways}d")
    first = tuple(v[n] for n in ("input", "weight", "bias", "stride", "padding"))
    last = (v["groups"], v["dilation"]) if v["transposed"] else (v["dilation"], v["groups"])
    if v["transposed"]:
        return "call_function", target, (*first, v["output_padding"], *last), {}
    return "call_function", target, (*first, *last), {}


def _activation(name: str) -> Listed:
    """F.silu and its like, in place where the operator's name ends with an underscore."""
    function, inplace = getattr(F, name.removesuffix("_")), name.endswith("_")

    def listed(v: Values, rank: int) -> Spelling | None:
        args = tuple(v.values())
        if len(args) > (3 if "hardtanh" in name else 2):
            return None  # elu has scales that F.elu does not take
        return "call_function", function, args, {"inplace": True} if inplace else {}

    return listed


def _interpolate(mode: str) -> Listed:
    def listed(v: Values, rank: int) -> Spelling | None:
        if "scale_factors" not in v:
            return None
        more = {"align_corners": v["align_corners"]} if "align_corners" in v else {}
        args = (v["input"], v["output_size"], v["scale_factors"], mode)
        return "call_function", F.interpolate, args, more

    return listed


def _einsum(v: Values, rank: int) -> Spelling:
    return "call_function", torch.einsum, (v["equation"], *v["tensors"]), {}


def _meshgrid(v: Values, rank: int) -> Spelling:
    return (
        "call_function",
        torch.meshgrid,
        tuple(v["tensors"]),
        {"indexing": v.get("indexing", "ij")},
    )


def _pad(v: Values, rank: int) -> Spelling:
    args = (v["self"], v["pad"], v.get("mode", "constant"), v.get("value"))
    return "call_function", F.pad, args, {}


_CONV = ("input", "weight", "bias", "stride", "padding")
_STATS = ("running_mean", "running_var", "weight", "bias")

_LISTED: dict[str, Listed] = {
    # sizes and look-ups
    "view": _view,
    "reshape": _method("reshape", "self", "shape"),
    "expand": _method("expand", "self", "size"),
    "unflatten": _method("unflatten", "self", "dim", "sizes"),
    "slice": _slice,
    "select": _select,
    "index": _index,
    "split": _split,
    "split_with_sizes": _split,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "sym_size": _method("size", "self", "dim"),
    "sym_numel": _method("numel", "self"),
    "sym_stride": _method("stride", "self", "dim"),
    "to": _to,
    "_to_copy": _to,
    "lift_fresh_copy": _function(torch.clone, "self"),
    "einsum": _einsum,
    "meshgrid": _meshgrid,
    # layers
    **{
        f"conv{n}d": _function(getattr(F, f"conv{n}d"), *_CONV, "dilation", "groups")
        for n in (1, 2, 3)
    },
    **{
        f"conv_transpose{n}d": _function(
            getattr(F, f"conv_transpose{n}d"), *_CONV, "output_padding", "groups", "dilation"
        )
        for n in (1, 2, 3)
    },
    "convolution": _convolution,
    "linear": _function(F.linear, "input", "weight", "bias"),
    "embedding": _function(F.embedding, "indices", "weight", "padding_idx"),
    "layer_norm": _function(F.layer_norm, "input", "normalized_shape", "weight", "bias", "eps"),
    "rms_norm": _function(F.rms_norm, "input", "normalized_shape", "weight", "eps"),
    "group_norm": _function(F.group_norm, "input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": _function(F.batch_norm, "input", *_STATS, "training", "momentum", "eps"),
    "instance_norm": _function(
        F.instance_norm, "input", *_STATS, "use_input_stats", "momentum", "eps"
    ),
    "dropout": _function(F.dropout, "input", "p", "train"),
    "dropout_": _function(F.dropout, "self", "p", "train", inplace=True),
    "feature_dropout": _function(F.dropout2d, "input", "p", "train"),
    "adaptive_avg_pool2d": _function(F.adaptive_avg_pool2d, "self", "output_size"),
    "adaptive_avg_pool3d": _function(F.adaptive_avg_pool3d, "self", "output_size"),
    # activations
    **{
        name: _activation(name)
        for kind in ("silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "relu6", "leaky_relu")
        for name in (kind, f"{kind}_")
    },
    # resampling
    **{
        f"upsample_{aten}": _interpolate(mode)
        for aten, mode in (
            ("nearest1d", "nearest"),
            ("nearest2d", "nearest"),
            ("nearest3d", "nearest"),
            ("linear1d", "linear"),
            ("bilinear2d", "bilinear"),
            ("trilinear3d", "trilinear"),
            ("bicubic2d", "bicubic"),
        )
    },
}
