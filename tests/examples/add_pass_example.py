"""The example of CONTRIBUTING.md, "Add a pass". The marked region is what is printed there."""

from __future__ import annotations

# region pass
from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn
from torch.fx import GraphModule

from fxprune.errors import PostconditionError
from fxprune.passes import Edit, Pass, PassResult
from fxprune.passes.base import called_module


@final
@dataclass(frozen=True, slots=True)
class DropIdentity(Pass):
    """Take every ``nn.Identity`` out of the graph: ``identity(x)`` is ``x``."""

    name: ClassVar[str] = "drop_identity"

    def run(self, gm: GraphModule) -> PassResult:
        """Let the readers of an identity read its input."""
        edits = []
        for node in list(gm.graph.nodes):
            if isinstance(called_module(gm, node), nn.Identity):
                node.replace_all_uses_with(node.args[0])
                gm.graph.erase_node(node)
                edits.append(Edit(self.name, node.name, "Identity", "", "it returns its input"))
        return PassResult(gm, changed=bool(edits), edits=tuple(edits))

    def ensures(self, gm: GraphModule) -> None:
        """Check that no identity is called any more.

        Raises
        ------
        PostconditionError
            If one is, which is a bug in the pass.
        """
        for node in gm.graph.nodes:
            if isinstance(called_module(gm, node), nn.Identity):
                raise PostconditionError(f"drop_identity left {node.name}.")


# endregion
