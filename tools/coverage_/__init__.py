"""Parts of tools/coverage.py."""
