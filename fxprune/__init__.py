"""fxprune: structured pruning on torch.fx graphs.

``auto_gate`` turns any model into one with gates on its prunable channels; ``compact`` cuts the
closed ones out. The two compute the same.
"""

from importlib.metadata import PackageNotFoundError, version

from fxprune.api import auto_gate
from fxprune.errors import (
    BudgetError,
    CaptureError,
    ConfigError,
    ExportError,
    FxpruneError,
    GateError,
    InputError,
    LoadError,
    PassError,
    UnsupportedOpError,
    VerificationError,
)
from fxprune.explain import explain
from fxprune.export import export_onnx
from fxprune.gated import GatedModule
from fxprune.prune import prune, select
from fxprune.report import report
from fxprune.serialize import load, save
from fxprune.verify import verify

try:
    __version__ = version("fxprune")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "BudgetError",
    "CaptureError",
    "ConfigError",
    "ExportError",
    "FxpruneError",
    "GateError",
    "GatedModule",
    "InputError",
    "LoadError",
    "PassError",
    "UnsupportedOpError",
    "VerificationError",
    "auto_gate",
    "explain",
    "export_onnx",
    "load",
    "prune",
    "report",
    "save",
    "select",
    "verify",
]
