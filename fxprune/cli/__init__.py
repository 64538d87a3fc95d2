"""The command line: ``fxprune demo | inspect | prune | train | compare``."""

from fxprune.cli.entry import main

__all__ = ["main"]
