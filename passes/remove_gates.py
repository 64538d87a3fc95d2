"""Take gate nodes out of a graph again, and turn gated twins into plain operators.

A gate ``gate(v, vector)`` becomes ``v``. That is right only where the removed positions are cut as
well (`slice_channels`), or while all gates are open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn
from torch.fx import GraphModule, Node

from fxprune.errors import PostconditionError
from fxprune.gated_leaves import GatedRecurrent
from fxprune.gates import Gate, GateVector, StatisticMask
from fxprune.passes.base import Edit, Pass, PassResult, called_module
from fxprune.statistics import is_gated, spelling, to_plain

__all__ = ["RemoveGates"]


@final
@dataclass(frozen=True, slots=True)
class RemoveGates(Pass):
    """Remove every gate, and put the plain operator in the place of every gated twin."""

    name: ClassVar[str] = "remove_gates"

    def run(self, gm: GraphModule) -> PassResult:
        """Erase gate nodes, put their inputs in their place, drop the gate modules."""
        edits = []
        owners = set()
        for node in reversed(list(gm.graph.nodes)):
            module = called_module(gm, node)
            if isinstance(module, Gate):
                node.replace_all_uses_with(node.args[0])
            elif isinstance(mask := _mask(gm, node), StatisticMask):
                edits.append(self._make_plain(gm, node, mask))
                continue
            elif "masks" in node.kwargs:
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != "masks"}
                if isinstance(module, GatedRecurrent):
                    gm.set_submodule(str(node.target), module.to_plain())
                edits.append(
                    Edit(self.name, node.name, "gated columns", "plain layer", "it had masks")
                )
                continue
            elif module is not None and (isinstance(module, GatedRecurrent) or is_gated(module)):
                edits.append(self._drop_twin(gm, node, module))
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

    def _drop_twin(self, gm: GraphModule, node: Node, module: nn.Module) -> Edit:
        """Put the plain module in the place of a twin that this graph gives no mask."""
        plain = module.to_plain() if isinstance(module, GatedRecurrent) else to_plain(module)
        gm.set_submodule(str(node.target), plain)
        what = type(module).__name__, type(plain).__name__
        return Edit(self.name, node.name, *what, "it has no mask here")

    def _make_plain(self, gm: GraphModule, node: Node, mask: StatisticMask) -> Edit:
        before = str(node.target)
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != "mask"}
        module = called_module(gm, node)
        if module is None:
            node.op, node.target = spelling(mask.plain)
        elif is_gated(module):  # a shared one may be plain again already
            gm.set_submodule(str(node.target), to_plain(module))
        return Edit(self.name, node.name, f"gated {before}", str(node.target), "it had a mask")

    def ensures(self, gm: GraphModule) -> None:
        """Check that no gate is left.

        Raises
        ------
        PostconditionError
            If one is, which is a bug in the pass.
        """
        for node in gm.graph.nodes:
            module = called_module(gm, node)
            found = isinstance(module, (Gate, GateVector, StatisticMask, GatedRecurrent))
            if found or is_gated(module):
                raise PostconditionError(
                    f"remove_gates left {node.name}.", hint="this is a bug in the pass"
                )


def _mask(gm: GraphModule, node: Node) -> nn.Module | None:
    """Return the module that makes the mask a node takes, or None if it takes none."""
    mask = node.kwargs.get("mask")
    return called_module(gm, mask) if isinstance(mask, Node) else None
