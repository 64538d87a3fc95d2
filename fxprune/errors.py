"""The exceptions fxprune raises: one tree, structured, each saying what to do next.

Every message has the same parts, in this order: what is wrong, where (module path, graph node and
the user's source line), the shapes or values seen, and the next step. The parts stay available as
attributes so that tools need not parse the text.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "CaptureError",
    "ConfigError",
    "ExportError",
    "FxpruneError",
    "GateError",
    "InputError",
    "InternalError",
    "LoadError",
    "PassError",
    "PostconditionError",
    "PreconditionError",
    "UnsupportedOpError",
    "VerificationError",
]


class FxpruneError(Exception):
    """Base class of every error fxprune raises on purpose.

    Parameters
    ----------
    what : str
        One sentence: what is wrong.
    where : str, optional
        Module path, graph node and source line, as far as they are known.
    seen : str, optional
        The shapes or values that were found.
    hint : str, optional
        What the user can do next.
    """

    def __init__(self, what: str, *, where: str = "", seen: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.seen = seen
        self.hint = hint
        lines = [what]
        lines += [
            f"  {label}: {text}"
            for label, text in (("where", where), ("seen", seen), ("next", hint))
            if text
        ]
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.seen, self.hint)


def _rebuild(kind: type[FxpruneError], what: str, where: str, seen: str, hint: str) -> FxpruneError:
    return kind(what, where=where, seen=seen, hint=hint)


class ConfigError(FxpruneError, ValueError):
    """An argument has the wrong type or a value outside its range."""


class InputError(FxpruneError, ValueError):
    """The example inputs do not fit the model, or none could be guessed."""


class CaptureError(FxpruneError):
    """The model could not be turned into a graph."""


class UnsupportedOpError(FxpruneError):
    """An operator has no rule and the caller asked for that to be an error."""


class GateError(FxpruneError, ValueError):
    """A keep-mask names no group, or has the wrong length, type or content."""


class BudgetError(FxpruneError, ValueError):
    """A budget is out of range, or no keep-mask reaches it."""


class VerificationError(FxpruneError):
    """Two models that must agree do not."""


class ExportError(FxpruneError):
    """A model could not be written as ONNX, or what was written is not right."""


class LoadError(FxpruneError):
    """A saved file is damaged, foreign or does not belong to the model given."""


class PassError(FxpruneError):
    """A graph pass failed or broke its own contract."""


class PreconditionError(PassError):
    """A pass was given a graph it cannot work on."""


class PostconditionError(PassError):
    """A pass returned a graph that breaks what it promises."""


class InternalError(FxpruneError):
    """Something fxprune relies on does not hold: a bug in fxprune, please report it."""
