"""The contract every graph pass keeps, and the machinery that checks it.

A pass is a function on graph modules with promises. For a pass ``p`` and a module ``gm``::

    requires(gm), r = p(gm)   imply   ensures(r.module), r.changed iff gm was changed

`Pass.__call__` checks all of it at run time, so that the author of a pass writes `Pass.run` only.
Three decisions hold for every pass:

* A pass works **in place** and returns the module it was given. Whoever must keep the original
  copies it once, before the first pass. A pass that raises may leave the module half rewritten.
* ``changed`` is checked against `fingerprint`: the text of the graph *and* the shape and dtype of
  every parameter and buffer, because the text stays the same when a weight is sliced. Values are
  not covered: a pass that only rescales weights says so through its edits.
* Every edit and every refusal is recorded with its reason.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import ClassVar, final

from torch import nn
from torch.fx import GraphModule, Node

from fxprune.errors import (
    ConfigError,
    FxpruneError,
    PassError,
    PostconditionError,
    PreconditionError,
)

__all__ = ["Edit", "Pass", "PassResult", "Skip", "called_module", "fingerprint"]


@dataclass(frozen=True, slots=True)
class Edit:
    """One thing a pass changed.

    Parameters
    ----------
    rule : str
        The rule that fired, usually the name of the pass.
    node : str
        Name of the graph node, or path of the submodule, parameter or buffer.
    before, after : str
        What stood there and what stands there now; empty where there is nothing.
    why : str
        Why the edit keeps the meaning of the graph.
    """

    rule: str
    node: str
    before: str
    after: str
    why: str


@dataclass(frozen=True, slots=True)
class Skip:
    """One place a pass looked at and left alone.

    Parameters
    ----------
    rule : str
        The rule that did not fire, usually the name of the pass.
    node : str
        Name of the graph node, or path of the submodule, parameter or buffer.
    reason : str
        Why it did not, in words a user understands.
    """

    rule: str
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass returns.

    Parameters
    ----------
    module : GraphModule
        The module the pass was given, rewritten.
    changed : bool
        Whether anything in it is different now.
    edits : tuple[Edit, ...]
        What was changed, in the order it was done.
    skipped : tuple[Skip, ...]
        What was looked at and left alone.
    """

    module: GraphModule
    changed: bool
    edits: tuple[Edit, ...] = ()
    skipped: tuple[Skip, ...] = ()


class Pass(abc.ABC):
    """Base class of every graph pass.

    A pass is a final, frozen dataclass: its options are its fields, so that two passes with the
    same options are equal and print alike. It sets `name`, writes `run`, and overrides `requires`
    and `ensures` where it has something to check there.

    Attributes
    ----------
    name : str
        The name used in edits, messages and reports.
    """

    __slots__ = ()

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not isinstance(getattr(cls, "name", None), str):
            raise ConfigError(
                f"The pass class {cls.__qualname__} has no name.",
                hint='add a class attribute: name: ClassVar[str] = "..."',
            )

    @abc.abstractmethod
    def run(self, gm: GraphModule) -> PassResult:
        """Rewrite the module in place.

        Parameters
        ----------
        gm : GraphModule
            A module for which `requires` holds. It needs no `recompile` afterwards.

        Returns
        -------
        PassResult
            The same module and what was done to it.
        """

    def requires(self, gm: GraphModule) -> None:  # noqa: B027  # most passes accept any valid graph
        """Check what the pass needs, before anything is changed.

        Parameters
        ----------
        gm : GraphModule
            The module `run` is about to be given.

        Raises
        ------
        PreconditionError
            If the pass cannot work on this module.
        """

    def ensures(self, gm: GraphModule) -> None:  # noqa: B027  # a valid graph is checked for every pass
        """Check what the pass promises, on the module it returns.

        Parameters
        ----------
        gm : GraphModule
            The rewritten and recompiled module.

        Raises
        ------
        PostconditionError
            If the promise is broken, which is a bug in the pass.
        """

    @final
    def __call__(self, gm: GraphModule) -> PassResult:
        """Run the pass on a module, in place, and check its contract.

        Parameters
        ----------
        gm : GraphModule
            The module to rewrite. It is changed; copy it first to keep the original.

        Returns
        -------
        PassResult
            The same module, whether it was changed, what was done and what was left alone.

        Raises
        ------
        PreconditionError
            If `gm` is not a GraphModule with a valid graph, or `requires` refuses it.
        PostconditionError
            If the pass leaves an invalid graph, or `ensures` refuses the result.
        PassError
            If `run` raises anything that is not an `FxpruneError`, returns something other than a
            `PassResult` for the same module, or reports `changed` wrongly.
        """
        self._check_input(gm)
        before = fingerprint(gm)
        with self._wrapping("requires"):
            self.requires(gm)
        with self._wrapping("run"):
            result = self.run(gm)
        self._check_result(result, gm)
        try:
            gm.graph.lint()
            gm.recompile()
        except Exception as error:
            raise PostconditionError(
                f"The pass {self.name!r} left a graph that is not valid: {error}",
                hint="this is a bug in the pass",
            ) from error
        with self._wrapping("ensures"):
            self.ensures(result.module)
        self._check_changed(result, before, fingerprint(gm))
        return result

    def _check_input(self, gm: object) -> None:
        if not isinstance(gm, GraphModule):
            raise PreconditionError(
                f"The pass {self.name!r} works on a torch.fx.GraphModule.",
                seen=f"a {type(gm).__name__}",
                hint="capture the model first, for example with torch.fx.symbolic_trace",
            )
        if all(node.op != "output" for node in gm.graph.nodes):
            raise PreconditionError(
                f"The graph given to the pass {self.name!r} has no output node.",
                seen=f"{len(gm.graph.nodes)} nodes",
                hint="end the graph with graph.output(...)",
            )
        try:
            gm.graph.lint()
        except Exception as error:
            raise PreconditionError(
                f"The graph given to the pass {self.name!r} is not valid: {error}",
                hint="whatever built or last edited this graph left it broken",
            ) from error

    def _check_result(self, result: object, gm: GraphModule) -> None:
        if not isinstance(result, PassResult):
            raise PassError(
                f"The pass {self.name!r} must return a PassResult.",
                seen=f"a {type(result).__name__}",
                hint="this is a bug in the pass",
            )
        if result.module is not gm:
            raise PassError(
                f"The pass {self.name!r} must rewrite the module in place and return that module.",
                seen="another module",
                hint="this is a bug in the pass",
            )

    def _check_changed(self, result: PassResult, before: str, after: str) -> None:
        moved = before != after
        if result.changed and not moved and not result.edits:
            raise PassError(
                f"The pass {self.name!r} reports a change, but changed no node, shape or dtype.",
                hint="report changed=False; a pass that changes values only lists them as edits",
            )
        if not result.changed and (moved or result.edits):
            raise PassError(
                f"The pass {self.name!r} reports no change, but it changed the module.",
                seen=_first_difference(before, after) if moved else str(result.edits[0]),
                hint="report changed=True",
            )

    @contextlib.contextmanager
    def _wrapping(self, stage: str) -> Iterator[None]:
        """Turn an exception that is not ours into a PassError that names the pass."""
        try:
            yield
        except FxpruneError:
            raise
        except Exception as error:
            raise PassError(
                f"The pass {self.name!r} failed in {stage}: {type(error).__name__}: {error}",
                hint="this is a bug in the pass; the original error is chained above",
            ) from error


def called_module(gm: GraphModule, node: object) -> nn.Module | None:
    """Return the submodule a node calls.

    Parameters
    ----------
    gm : GraphModule
        The module the graph belongs to.
    node : object
        Usually a `torch.fx.Node`; anything else is allowed, as arguments of nodes may be anything.

    Returns
    -------
    nn.Module or None
        The submodule, or None if `node` is not a node that calls one.
    """
    if isinstance(node, Node) and node.op == "call_module" and isinstance(node.target, str):
        return gm.get_submodule(node.target)
    return None


def fingerprint(gm: GraphModule) -> str:
    """Describe everything about a module that a pass may not change silently.

    Parameters
    ----------
    gm : GraphModule
        The module to describe.

    Returns
    -------
    str
        The text of its graph and of those nested in it, the class of every submodule, and path,
        shape and dtype of every parameter and buffer. Values are not covered.

    Notes
    -----
    A tensor that is shared is listed once, under its first path, so untying two parameters shows
    too.
    """
    lines: list[str] = []
    for path, module in gm.named_modules():
        lines.append(f"module {path}: {type(module).__qualname__}")
        if isinstance(module, GraphModule):
            lines.append(str(module.graph))
    for kind, tensors in (("parameter", gm.named_parameters()), ("buffer", gm.named_buffers())):
        lines += [f"{kind} {path}: {tuple(t.shape)} {t.dtype}" for path, t in tensors]
    return "\n".join(lines)


def _first_difference(before: str, after: str) -> str:
    pairs = zip_longest(before.splitlines(), after.splitlines(), fillvalue="(nothing)")
    old, new = next((old, new) for old, new in pairs if old != new)
    return f"{old.strip()} became {new.strip()}"
