"""Give what a region takes and returns its full width, as the Python code around it knows it.

A gated region multiplies a tensor by its gates before it returns it, and before it sums over what
it is handed. For the compact one, with ``K`` the kept positions of an axis::

    return y    becomes    z = 0 of full width;  z[K] = y;  return z
    take x      becomes    x[K]

so that both forms compute the same whatever the Python code between two regions does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from fxprune._graphs import returned_values
from fxprune.analysis.plan import Plan
from fxprune.gates import Gate
from fxprune.passes._pruned_view import PrunedView
from fxprune.passes.base import Edit, Pass, PassResult, called_module

__all__ = ["FitBorders"]


@final
@dataclass(frozen=True, slots=True, eq=False)
class FitBorders(Pass):
    """Take kept channels out of a region's inputs, and put its outputs among zeros.

    It runs last, on a graph whose tensors and sizes are cut already; there may be gates in it.

    Parameters
    ----------
    plan : Plan
    keep : bool array, shape (n_units,)
    key : str
        Which of the plan's graphs this is.
    """

    name: ClassVar[str] = "fit_borders"

    plan: Plan
    keep: npt.NDArray[np.bool_]
    key: str

    def run(self, gm: GraphModule) -> PassResult:
        """Insert a look-up behind every input, and a pad and a look-up before every output."""
        view = PrunedView(self.plan, self.keep, self.key)
        edits = []
        inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
        for node, taker in dict.fromkeys(returned_values(gm.graph)):
            edits += self._widen(gm, node, taker, view)
        for node in inputs:
            edits += self._narrow(gm, node, inputs[-1], view)
        return PassResult(gm, changed=bool(edits), edits=tuple(edits))

    def _narrow(self, gm: GraphModule, node: Node, last: Node, view: PrunedView) -> list[Edit]:
        edits = []
        for dim, kept in self._cut_axes(node, view):
            users = list(node.users)
            with gm.graph.inserting_after(last):
                numbers = _constant(gm, f"{node.name}_{dim}_in", np.flatnonzero(kept))
            with gm.graph.inserting_after(numbers):
                taken = gm.graph.call_function(torch.index_select, (node, dim, numbers))
            for user in users:
                user.replace_input_with(node, taken)
            edits.append(self._edit(node, "kept channels are taken out of it"))
            node, last = taken, taken
        return edits

    def _widen(self, gm: GraphModule, node: Node, taker: Node, view: PrunedView) -> list[Edit]:
        edits, value = [], node
        made = node
        while isinstance(called_module(gm, made), Gate):
            made = made.all_input_nodes[0]
        for dim, kept in self._cut_axes(made, view):
            ndim = len(view.values(made)[0][0])
            zero_at_end = (0, 0) * (ndim - 1 - dim) + (0, 1)
            order = np.where(kept, np.cumsum(kept) - 1, kept.sum())
            with gm.graph.inserting_before(taker):
                numbers = _constant(gm, f"{node.name}_{dim}_out", order)
                padded = gm.graph.call_function(F.pad, (value, zero_at_end))
                value = gm.graph.call_function(torch.index_select, (padded, dim, numbers))
            edits.append(self._edit(node, "what is returned has its full width"))
        if edits:
            taker.replace_input_with(node, value)
        return edits

    def _cut_axes(self, node: Node, view: PrunedView) -> list[tuple[int, npt.NDArray[np.bool_]]]:
        values = view.values(node)
        if len(values) != 1:
            return []
        return [
            (dim, self.plan.kept(ids, self.keep))
            for dim, ids in enumerate(values[0][1])
            if ids is not None and view.cut(ids)
        ]

    def _edit(self, node: Node, why: str) -> Edit:
        return Edit(self.name, node.name, str(node.op), "index_select", why)


def _constant(gm: GraphModule, name: str, numbers: npt.NDArray[np.int64]) -> Node:
    """Hold numbers in a buffer that is no state, and return a node for them."""
    device = next((p.device for p in gm.parameters()), torch.device("cpu"))
    target = f"fxprune_border_{name}"
    gm.register_buffer(target, torch.from_numpy(numbers).to(device), persistent=False)
    return gm.graph.create_node("get_attr", target)
