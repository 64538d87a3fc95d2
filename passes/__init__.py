"""Graph passes: small, self-checking rewrites of a torch.fx graph module.

Each pass is one file with one class; `base` holds the contract they keep and `pipeline` runs
several.
"""

from fxprune.passes.base import Edit, Pass, PassResult, Skip
from fxprune.passes.drop_dead_code import DropDeadCode
from fxprune.passes.fold_batchnorm import FoldBatchNorm
from fxprune.passes.pipeline import Pipeline

__all__ = [
    "DropDeadCode",
    "Edit",
    "FoldBatchNorm",
    "Pass",
    "PassResult",
    "Pipeline",
    "Skip",
]
