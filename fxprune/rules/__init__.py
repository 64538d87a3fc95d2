"""Operator rules: how channel ids pass through each operator. One file per family.

To add an operator: write a rule in the file of its family (or a new file, imported here) and one
row in ``tests/op_samples.py``. An operator with no rule freezes the ids that reach it, with a
recorded reason.
"""

from fxprune.rules import (
    attention,
    bilinear,
    conv,
    lookup,
    matmul,
    movement,
    norm,
    pointwise,
    recurrent,
    reduction,
    repeat,
    windows,
)
from fxprune.rules._registry import Registry, Rule, registry, rule

__all__ = [
    "Registry",
    "Rule",
    "attention",
    "bilinear",
    "conv",
    "lookup",
    "matmul",
    "movement",
    "norm",
    "pointwise",
    "recurrent",
    "reduction",
    "registry",
    "repeat",
    "rule",
    "windows",
]
