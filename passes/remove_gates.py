"""Take gate nodes out of a graph again, and turn gated LayerNorms into plain ones.

A gate ``gate(v, vector)`` becomes ``v``. That is right only where the removed positions are cut as
well (`slice_channels`), or while all gates are open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node

from fxprune.errors import PostconditionError
from fxprune.gated_leaves import GatedRecurrent
from fxprune.gates import Gate, GatedLayerNorm, GateVector, StatisticMask, gated_layer_norm
from fxprune.passes.base import Edit, Pass, PassResult, called_module

__all__ = ["RemoveGates"]


@final
@dataclass(frozen=True, slots=True)
class RemoveGates(Pass):
    """Remove every gate, and make every gated LayerNorm a plain one."""

    name: ClassVar[str] = "remove_gates"

    def run(self, gm: GraphModule) -> PassResult:
        """Erase gate nodes, put their inputs in their place, drop the gate modules."""
        edits = []
        owners = set()
        for node in reversed(list(gm.graph.nodes)):
            module = called_module(gm, node)
            if isinstance(module, Gate):
                node.replace_all_uses_with(node.args[0])
            elif self._is_masked(node, module):
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != "mask"}
                if isinstance(module, GatedLayerNorm):  # a shared one may be plain again already
                    gm.set_submodule(str(node.target), module.to_plain())
                elif module is None:
                    node.target = F.layer_norm
                plain = Edit(self.name, node.name, "gated LayerNorm", "LayerNorm", "it had a mask")
                edits.append(plain)
                continue
            elif "masks" in node.kwargs:
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != "masks"}
                if isinstance(module, GatedRecurrent):
                    gm.set_submodule(str(node.target), module.to_plain())
                edits.append(
                    Edit(self.name, node.name, "gated columns", "plain layer", "it had masks")
                )
                continue
            elif not isinstance(module, (StatisticMask, GateVector)):
                continue
            owners.add(str(node.target).partition(".")[0])
            edits.append(
                Edit(self.name, node.name, str(node.target), "", "gates are no longer needed")
            )
            gm.graph.erase_node(node)
        for owner in owners:
            gm.delete_submodule(owner)
        return PassResult(gm, changed=bool(edits), edits=tuple(edits))

    @staticmethod
    def _is_masked(node: Node, module: nn.Module | None) -> bool:
        """Return whether a node is a LayerNorm, a module or the function, that takes a mask."""
        norm = isinstance(module, nn.LayerNorm) or node.target is gated_layer_norm
        return norm and "mask" in node.kwargs

    def ensures(self, gm: GraphModule) -> None:
        """Check that no gate is left.

        Raises
        ------
        PostconditionError
            If one is, which is a bug in the pass.
        """
        for node in gm.graph.nodes:
            module = called_module(gm, node)
            if isinstance(
                module, (Gate, GateVector, StatisticMask, GatedLayerNorm, GatedRecurrent)
            ):
                raise PostconditionError(
                    f"remove_gates left {node.name}.", hint="this is a bug in the pass"
                )
