"""Remove what no output depends on.

A node goes if its value reaches neither the output nor an effect: if L is the least set that holds
the output, the placeholders, the effects and every input of a member, what is outside L goes.
`_effects` tells what an effect is; in-place writes count as long as what they write to is needed.
Then a submodule, parameter or buffer goes if no node's path leads to it, into it or through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, chain
from typing import ClassVar, final

from torch.fx import GraphModule, Node

from fxprune.errors import PostconditionError
from fxprune.passes._effects import dead_nodes
from fxprune.passes.base import Edit, Pass, PassResult, Skip

__all__ = ["DropDeadCode"]


@final
@dataclass(frozen=True, slots=True)
class DropDeadCode(Pass):
    """Remove unused nodes, and the submodules, parameters and buffers no node refers to.

    Notes
    -----
    Placeholders stay: they are the signature. Assertions and other effects torch knows of stay; a
    function of your own that has an effect is registered with ``torch.fx.node.has_side_effect``.
    Random operations that nobody reads go, so the random stream of what follows may shift. A `Skip`
    is recorded for every unused node that has to stay because of what it writes.

    Examples
    --------
    >>> import torch
    >>> from fxprune.passes import DropDeadCode
    >>> def model(x):
    ...     unused = x + 1
    ...     return x * 2
    >>> [edit.node for edit in DropDeadCode()(torch.fx.symbolic_trace(model)).edits]
    ['add']
    """

    name: ClassVar[str] = "drop_dead_code"

    def run(self, gm: GraphModule) -> PassResult:
        """Erase dead nodes, then unreferenced submodules, parameters and buffers.

        Parameters
        ----------
        gm : GraphModule
            The module to rewrite in place.

        Returns
        -------
        PassResult
            One edit per node or topmost attribute removed.
        """
        dead, kept = dead_nodes(gm)
        edits = []
        for node in dead:
            edits.append(Edit(self.name, node.name, _describe(node), "", "nobody uses its value"))
            gm.graph.erase_node(node)
        for path in _unreferenced(gm):
            parent, _, leaf = path.rpartition(".")
            owner = gm.get_submodule(parent)
            before = type(getattr(owner, leaf)).__name__
            edits.append(Edit(self.name, path, before, "", "no node refers to it"))
            delattr(owner, leaf)
        skipped = tuple(Skip(self.name, node.name, reason) for node, reason in kept.items())
        return PassResult(gm, bool(edits), tuple(edits), skipped)

    def ensures(self, gm: GraphModule) -> None:
        """Check that nothing is left to remove.

        Parameters
        ----------
        gm : GraphModule
            The rewritten module.

        Raises
        ------
        PostconditionError
            If a dead node or an unreferenced attribute is left.
        """
        dead, _ = dead_nodes(gm)
        left = [node.name for node in dead] + _unreferenced(gm)
        if left:
            raise PostconditionError(
                f"The pass {self.name!r} left dead code.",
                seen=", ".join(left),
                hint="this is a bug in the pass",
            )


def _describe(node: Node) -> str:
    target = (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )
    return f"{node.op} {target}"


def _unreferenced(gm: GraphModule) -> list[str]:
    """List what no node refers to; of a submodule with all it holds, only the submodule."""
    targets = {
        node.target
        for node in gm.graph.nodes
        if node.op in ("call_module", "get_attr") and isinstance(node.target, str)
    }
    # a node needs what its path names with all it holds, and the modules on the way there
    on_the_way = {prefix for target in targets for prefix in _prefixes(target)}

    def needed(path: str) -> bool:
        return path in on_the_way or any(prefix in targets for prefix in _prefixes(path))

    paths = chain(
        (path for path, _ in gm.named_modules(remove_duplicate=False) if path),
        (path for path, _ in gm.named_parameters(remove_duplicate=False)),
        (path for path, _ in gm.named_buffers(remove_duplicate=False)),
    )
    unneeded = {path: None for path in paths if not needed(path)}
    return [path for path in unneeded if path.rpartition(".")[0] not in unneeded]


def _prefixes(path: str) -> list[str]:
    return list(accumulate(path.split("."), lambda parent, name: f"{parent}.{name}"))
