"""The table of operator rules: which function pushes channel ids through which operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fxprune.analysis.op import Op
from fxprune.errors import ConfigError

__all__ = ["Registry", "Rule", "registry", "rule"]

Rule = Callable[[Op], None]


class Registry:
    """Rules by operator name (``aten::add``, no overload).

    `child` makes a layer that tests may change.
    """

    def __init__(self, parent: Registry | None = None) -> None:
        self._rules: dict[str, Rule] = {}
        self._parent = parent

    def register(self, *names: str) -> Callable[[Rule], Rule]:
        """Return a decorator that registers a rule for operators.

        Parameters
        ----------
        *names : str
            Operator names such as ``"aten::convolution"``. The in-place twin (``aten::relu_``)
            shares the rule.

        Raises
        ------
        ConfigError
            If an operator already has a rule here; both functions are named.
        """

        def decorate(function: Rule) -> Rule:
            for name in names:
                if name in self._rules:
                    raise ConfigError(
                        f"operator {name} has two rules",
                        seen=f"{_qualified(self._rules[name])} and {_qualified(function)}",
                        hint="remove one, or register the second in a child registry",
                    )
                self._rules[name] = function
            return function

        return decorate

    def find(self, name: str) -> Rule | None:
        """Return the rule of an operator or of its out-of-place twin, or None if it has none."""
        found = self._rules.get(name) or self._rules.get(name.removesuffix("_"))
        if found is None and self._parent is not None:
            return self._parent.find(name)
        return found

    def child(self) -> Registry:
        """Return a registry that falls back on this one."""
        return Registry(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)


def _qualified(function: Rule) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', function)}"


registry = Registry()
rule = registry.register
