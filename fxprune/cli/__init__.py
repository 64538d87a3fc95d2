"""The command line: ``fxprune demo | inspect | prune | compare``."""

from fxprune.cli.main import main

__all__ = ["main"]
