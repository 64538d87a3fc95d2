"""fxprune: structured pruning on torch.fx graphs."""

from fxprune.api import auto_gate

__all__ = ["auto_gate"]
