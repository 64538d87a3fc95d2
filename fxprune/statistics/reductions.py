"""Gated reductions: mean, variance, standard deviation, maximum, minimum over kept positions."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.statistics._masked import blank, count, filled, moments, widened
from fxprune.statistics.table import twin

__all__ = [
    "gated_amax",
    "gated_amin",
    "gated_max",
    "gated_mean",
    "gated_min",
    "gated_std",
    "gated_std_mean",
    "gated_var",
    "gated_var_mean",
]

_ATEN = torch.ops.aten
_ALIASES = {"axis": "dim", "keepdims": "keepdim"}


def _named(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return arguments by name; NumPy's names are torch's as well."""
    given = {_ALIASES.get(name, name): value for name, value in kwargs.items()}
    return {**dict(zip(names, args, strict=False)), **given}


def _dims(dim: Any, ndim: int) -> tuple[int, ...]:
    """Return the axes a reduction runs over; none named means all."""
    if dim is None or (not isinstance(dim, int) and not len(dim)):
        return tuple(range(ndim))
    return tuple(d % ndim for d in ([dim] if isinstance(dim, int) else dim))


def _shaped(result: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    return result if keepdim else result.squeeze(dims)


@twin("mean", torch.mean, _ATEN.mean.dim, _ATEN.mean.default)
def gated_mean(
    input: Tensor,  # torch's own name, by which callers may pass it
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """``sum(m x) / sum(m)`` over the axes that ``torch.mean`` would run over."""
    if mask is None:
        result: Tensor = torch.mean(input, *args, **kwargs)
        return result
    given = _named(args, kwargs, "dim", "keepdim")
    x = input if given.get("dtype") is None else input.to(given["dtype"])
    dims = _dims(given.get("dim"), x.dim())
    high = blank(widened(x), mask)
    total = count(mask, x.shape, dims)
    mean = (high * mask.to(high.dtype)).sum(dims, keepdim=True) / total
    return _shaped(mean, dims, given.get("keepdim", False)).to(x.dtype)


def _variance(
    x: Tensor, mask: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return variance and mean, for all the ways to write ``torch.var``."""
    if args and isinstance(args[0], bool):  # var(unbiased)
        args = (None, *args)
    given = _named(args, kwargs, "dim", "unbiased", "keepdim")
    correction = given.get("correction")
    if correction is None:
        correction = int(given.get("unbiased", True))
    dims = _dims(given.get("dim"), x.dim())
    mean, _, squares, total = moments(widened(x), mask, dims)
    variance = squares / (total - correction).clamp_min(0)
    keepdim = given.get("keepdim", False)
    return _shaped(variance, dims, keepdim), _shaped(mean, dims, keepdim).to(x.dtype)


@twin("var", torch.var, _ATEN.var.default, _ATEN.var.dim, _ATEN.var.correction)
def gated_var(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """``sum(m (x - mean)^2) / (sum(m) - correction)``, arguments as for ``torch.var``."""
    if mask is None:
        result: Tensor = torch.var(input, *args, **kwargs)
        return result
    return _variance(input, mask, args, kwargs)[0].to(input.dtype)


@twin("std", torch.std, _ATEN.std.default, _ATEN.std.dim, _ATEN.std.correction)
def gated_std(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Return the square root of `gated_var`, arguments as for ``torch.std``."""
    if mask is None:
        result: Tensor = torch.std(input, *args, **kwargs)
        return result
    return _variance(input, mask, args, kwargs)[0].sqrt().to(input.dtype)


@twin(torch.var_mean, _ATEN.var_mean.default, _ATEN.var_mean.dim, _ATEN.var_mean.correction)
def gated_var_mean(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """`gated_var` and `gated_mean` at once, arguments as for ``torch.var_mean``."""
    if mask is None:
        result: tuple[Tensor, Tensor] = torch.var_mean(input, *args, **kwargs)
        return result
    variance, mean = _variance(input, mask, args, kwargs)
    return variance.to(input.dtype), mean


@twin(torch.std_mean, _ATEN.std_mean.default, _ATEN.std_mean.dim, _ATEN.std_mean.correction)
def gated_std_mean(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """`gated_std` and `gated_mean` at once, arguments as for ``torch.std_mean``."""
    if mask is None:
        result: tuple[Tensor, Tensor] = torch.std_mean(input, *args, **kwargs)
        return result
    variance, mean = _variance(input, mask, args, kwargs)
    return variance.sqrt().to(input.dtype), mean


@twin("amax", torch.amax, _ATEN.amax.default)
def gated_amax(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Maximum over the kept positions; a soft gate `g` competes with ``x + log(g)``."""
    x = input if mask is None else filled(input, mask, 1)
    result: Tensor = torch.amax(x, *args, **kwargs)
    return result


@twin("amin", torch.amin, _ATEN.amin.default)
def gated_amin(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Minimum over the kept positions; a soft gate `g` competes with ``x - log(g)``."""
    x = input if mask is None else filled(input, mask, -1)
    result: Tensor = torch.amin(x, *args, **kwargs)
    return result


def _only_values_read(node: fx.Node) -> bool:
    """Return whether no reader asks where the maximum is: a channel's number would change."""
    if len(node.args) < 2 and not {"dim", "axis"} & node.kwargs.keys():
        return True
    values = ((operator.getitem, (0,)), (getattr, ("values",)))
    return all((user.target, user.args[1:]) in values for user in node.users)


@twin("max", torch.max, _ATEN.max.default, _ATEN.max.dim, fits=_only_values_read)
def gated_max(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """`gated_amax` with the arguments and results of ``torch.max``."""
    return torch.max(input if mask is None else filled(input, mask, 1), *args, **kwargs)


@twin("min", torch.min, _ATEN.min.default, _ATEN.min.dim, fits=_only_values_read)
def gated_min(
    input: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """`gated_amin` with the arguments and results of ``torch.min``."""
    return torch.min(input if mask is None else filled(input, mask, -1), *args, **kwargs)
