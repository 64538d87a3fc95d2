"""Gated statistics: operators that take a statistic over prunable channels, with a mask.

A mean, a variance or a softmax over channels changes its value when a channel goes. Its *gated
twin* takes the gates as a mask, counts the kept positions only, and so computes exactly what the
plain operator computes once the others are cut out. While all gates are open the mask is None and
the twin calls the plain operator.

To add one: a function here, with `twin` naming the spellings it stands for, and in the operator's
rule ``op.statistic(x, dims, reason)``.
"""

from fxprune.statistics import norms, reductions, softmax
from fxprune.statistics.modules import (
    GatedGroupNorm,
    GatedLayerNorm,
    GatedLogSoftmax,
    GatedRMSNorm,
    GatedSoftmax,
    is_gated,
    plain_type,
    to_gated,
    to_plain,
)
from fxprune.statistics.table import find_twin, spelling, spelling_of, twin

__all__ = [
    "GatedGroupNorm",
    "GatedLayerNorm",
    "GatedLogSoftmax",
    "GatedRMSNorm",
    "GatedSoftmax",
    "find_twin",
    "is_gated",
    "norms",
    "plain_type",
    "reductions",
    "softmax",
    "spelling",
    "spelling_of",
    "to_gated",
    "to_plain",
    "twin",
]
