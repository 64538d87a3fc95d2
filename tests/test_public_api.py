"""What ``import fxprune`` promises: every name is there, documented, and documented as it is."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import fxprune
import fxprune.errors
import fxprune.passes

SECTIONS = (
    "Parameters Returns Yields Raises Attributes Notes Examples References Warns See Also".split()
)
CONTRACT = "auto_gate explain export_onnx load prune report save verify".split()
MODULES = sorted(
    {"fxprune"}
    | {
        info.name
        for info in pkgutil.walk_packages(fxprune.__path__, "fxprune.")
        if not info.name.endswith("__main__")
    }
)


def public(module: Any = fxprune) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


def functions(module: Any) -> dict[str, Callable[..., Any]]:
    """Return the functions a module makes public, and the public methods of its classes."""
    found: dict[str, Callable[..., Any]] = {}
    for name, thing in public(module).items():
        if inspect.isfunction(thing):
            found[name] = thing
        elif inspect.isclass(thing) and thing.__module__.startswith("fxprune"):
            for attribute, member in vars(thing).items():
                plain = getattr(member, "__func__", member)
                if inspect.isfunction(plain) and not attribute.startswith("_"):
                    found[f"{name}.{attribute}"] = plain
    return found


def sections(text: str) -> dict[str, str]:
    """Split a numpydoc docstring at its underlined headings."""
    lines = inspect.cleandoc(text).splitlines()
    found, now = {"": ""}, ""
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch("-{3,}", line):
            continue
        if re.fullmatch("-{3,}", after):
            now = line.strip()
            found[now] = ""
        else:
            found[now] += line + "\n"
    return found


def documented(section: str) -> list[str]:
    """List the names that a Parameters section describes, in order."""
    heads = [line for line in section.splitlines() if line and not line.startswith(" ")]
    names = [name.strip() for head in heads for name in head.partition(" : ")[0].split(",")]
    return [name.lstrip("*") for name in names]


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def test_the_contract_is_there() -> None:
    assert set(CONTRACT) <= set(fxprune.__all__)


def test_all_is_sorted_and_importable() -> None:
    assert list(fxprune.__all__) == sorted(fxprune.__all__)
    assert len(set(fxprune.__all__)) == len(fxprune.__all__)
    assert all(thing is not None for thing in public().values())


def test_every_error_a_user_meets_is_public() -> None:
    inner = {"InternalError", "PreconditionError", "PostconditionError"}
    assert set(fxprune.errors.__all__) - inner <= set(fxprune.__all__)
    for name in fxprune.errors.__all__:
        assert issubclass(getattr(fxprune.errors, name), fxprune.FxpruneError)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_and_what_is_public(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    missing = [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)]
    assert missing == []


@pytest.mark.parametrize("name", fxprune.__all__)
def test_docstring(name: str) -> None:
    doc = inspect.getdoc(public()[name])
    assert doc
    first = doc.splitlines()[0]
    assert first.endswith("."), "the first line is one sentence"
    unknown = set(sections(doc)) - {""} - set(SECTIONS)
    assert unknown == set()


FUNCTIONS = {**functions(fxprune), **functions(fxprune.passes)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_parameters_are_those_of_the_signature(name: str) -> None:
    function = FUNCTIONS[name]
    expected = parameters(function)
    found = sections(inspect.getdoc(function) or "")
    if "Parameters" in found:
        assert sorted(documented(found["Parameters"])) == sorted(expected)
    elif "." not in name:
        assert expected == [], "a public function describes its parameters"


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if "." not in n])
def test_a_public_function_says_what_it_returns_and_raises(name: str) -> None:
    function = FUNCTIONS[name]
    found = sections(inspect.getdoc(function) or "")
    if inspect.signature(function).return_annotation not in (None, "None"):
        assert "Returns" in found
    told = re.findall(r"^(\w+(?:, \w+)*)$", found.get("Raises", ""), re.M)
    for error in ", ".join(told).split(", "):
        assert not error or error in fxprune.errors.__all__ or error.endswith("Error")


def test_the_check_of_docstrings_can_fail() -> None:
    def function(one: int, two: int) -> int:
        """Do.

        Parameters
        ----------
        one, three : int
            Numbers.

        Returns
        -------
        int
        """
        return one + two

    found = sections(inspect.getdoc(function) or "")
    assert list(found) == ["", "Parameters", "Returns"]
    assert documented(found["Parameters"]) == ["one", "three"]
    assert parameters(function) == ["one", "two"]


def test_importing_brings_in_no_optional_dependency() -> None:
    code = (
        "import sys, fxprune; "
        "print([m for m in ('matplotlib', 'timm', 'sklearn', 'torch_pruning') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
