"""Several passes as one.

For passes p1 .. pn, ``Pipeline((p1, .., pn))(gm)`` is ``pn(.. p1(gm))``: each member checks its own
contract, the edits and skips are joined in order, and the whole has changed if any member has. A
pipeline is a pass, so pipelines nest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch.fx import GraphModule

from fxprune.errors import ConfigError, FxpruneError
from fxprune.passes.base import Edit, Pass, PassResult, Skip

__all__ = ["Pipeline"]


@final
@dataclass(frozen=True, slots=True)
class Pipeline(Pass):
    """Run passes one after the other on the same module.

    Parameters
    ----------
    passes : tuple[Pass, ...]
        The passes, in the order they run.

    Raises
    ------
    ConfigError
        If `passes` is not a tuple of `Pass` objects.

    Notes
    -----
    An error raised by a member keeps its type; a note tells which member it was and what ran before
    it. Calling the pipeline may raise whatever its members raise.

    Examples
    --------
    >>> from fxprune.passes import DropDeadCode, FoldBatchNorm, Pipeline
    >>> [member.name for member in Pipeline((FoldBatchNorm(), DropDeadCode())).passes]
    ['fold_batchnorm', 'drop_dead_code']
    """

    name: ClassVar[str] = "pipeline"

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.passes, tuple) or not all(isinstance(p, Pass) for p in self.passes):
            raise ConfigError(
                "The 'passes' parameter of Pipeline must be a tuple of Pass objects. "
                f"Got {self.passes!r} instead.",
                hint="create the passes first: Pipeline((FoldBatchNorm(), DropDeadCode()))",
            )

    def run(self, gm: GraphModule) -> PassResult:
        """Run every member on the module.

        Parameters
        ----------
        gm : GraphModule
            The module to rewrite in place.

        Returns
        -------
        PassResult
            The module with the edits and skips of all members.
        """
        changed = False
        edits: list[Edit] = []
        skipped: list[Skip] = []
        for position, member in enumerate(self.passes):
            try:
                result = member(gm)
            except FxpruneError as error:
                done = ", ".join(p.name for p in self.passes[:position])
                error.add_note(
                    f"  pass: {member.name}, {f'after {done}' if done else 'the first to run'}"
                )
                raise
            changed |= result.changed
            edits += result.edits
            skipped += result.skipped
        return PassResult(gm, changed, tuple(edits), tuple(skipped))
