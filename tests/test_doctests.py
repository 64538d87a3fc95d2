"""The examples in the docstrings must run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fxprune

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(fxprune.__path__, "fxprune.")
    if not info.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples failed"
