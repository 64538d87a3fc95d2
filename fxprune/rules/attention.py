"""What attention adds to the matrix products: scales, and norms of queries and keys.

``scaled_dot_product_attention`` itself needs no rule. On meta tensors it runs as what it means,
products, a softmax and a scale, and these have theirs.
"""

from __future__ import annotations

from torch import Tensor

from fxprune.analysis.op import Op
from fxprune.rules._registry import rule
from fxprune.rules.pointwise import pointwise

__all__ = ["scale"]


@rule("aten::mul", "aten::div")
def scale(op: Op) -> None:
    """Multiply or divide; a gate before it is a gate after it.

    So a sum over the result can be gated at a value of the graph even where the product is made
    inside of a function, as ``scaled_dot_product_attention`` and ``cosine_similarity`` do.
    """
    x, by = op.args[:2]
    single = not isinstance(by, Tensor) or (by.dim() == 0 and op.static(by))
    if single and isinstance(x, Tensor) and x.dim():
        op.set(op.ids(x), moved=x)
        return
    pointwise(op)
    factors = (x, by) if op.name == "aten::mul" else (x,)
    for factor in factors:
        whole = isinstance(factor, Tensor) and factor.shape == op.shape()
        if whole and any(axis is not None for axis in op.ids(factor)):
            op.set(op.ids(op.out), moved=factor)
            return
