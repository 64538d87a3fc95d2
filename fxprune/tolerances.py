"""How far two computations of the same numbers may differ: the one table.

An error is taken relative to the largest magnitude of the output it belongs to: an element that is
small by cancellation carries the rounding noise of the large ones, so a ratio taken element by
element says nothing.

Where the numbers come from (fifteen torchvision models with random weights, the same model in two
precisions): float32 is off by 2e-7 to 1e-6 in eval mode and up to 3e-5 where BatchNorm takes its
statistics from a batch of four; bfloat16 by up to 1.4e-2 and float16 by up to 7e-4 in eval mode. In
train mode the two half precisions have no useful bound (2e-1 and 5e-2 were seen). float64 is off by
about 1e-14; its entry is the promise the library is tested against.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

import torch

__all__ = ["RTOL", "relative_tolerance"]

RTOL: Mapping[torch.dtype, float] = MappingProxyType(
    {
        torch.float64: 1e-9,
        torch.complex128: 1e-9,
        torch.float32: 1e-4,
        torch.complex64: 1e-4,
        torch.float16: 1e-2,
        torch.bfloat16: 5e-2,
    }
)
"""Allowed error per dtype, as a share of the output's largest magnitude (no unit)."""


def relative_tolerance(dtypes: Iterable[torch.dtype]) -> float:
    """Return the tolerance of the coarsest of several dtypes.

    Parameters
    ----------
    dtypes : iterable of torch.dtype
        Dtypes that took part in the computation.

    Returns
    -------
    float
        Allowed error as a share of the output's largest magnitude. Integer and boolean results must
        be equal: they allow 0.
    """
    return max((RTOL.get(dtype, 0.0) for dtype in dtypes), default=0.0)
