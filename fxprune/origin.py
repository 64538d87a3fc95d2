"""Where a gated model that has been shrunk came from.

Sizes written into a graph are rewritten from what the analysis saw of the graph as it was captured.
However often a model is shrunk, its graphs are therefore made from these, with the masks of all
shrinks together: two shrinks are one shrink by the union.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx

from fxprune._graphs import Record, graph_from_records, graph_to_records
from fxprune.analysis.ids import Ids
from fxprune.analysis.plan import Keep, Plan

__all__ = ["Origin"]


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """A model before it was shrunk, and which units of it are left.

    Attributes
    ----------
    plan : Plan
        What the analysis found of it.
    graphs : mapping of str to fx.Graph
        Its graphs without gates, by the keys of the plan's, and without the branches that have been
        removed; sizes are those that it was captured with.
    left : bool array, shape (original n_units,)
        The masks it was shrunk by, all together. For a group that went as a whole with the part of
        the model it was in, the masks it had then.
    units : int array, shape (n_units,)
        The number that each unit of the shrunk model has in the original.
    """

    plan: Plan
    graphs: Mapping[str, fx.Graph]
    left: Keep
    units: Ids

    @classmethod
    def of(cls, plan: Plan, graphs: Mapping[str, fx.Graph]) -> Origin:
        """Return the origin of a model that is still whole."""
        return cls(plan, dict(graphs), np.ones(plan.n_units, dtype=bool), np.arange(plan.n_units))

    def full(self, keep: Keep) -> Keep:
        """Return a keep-vector of the original from one of the shrunk model."""
        full = self.left.copy()
        full[self.units] = keep
        return full

    def shrunk(self, keep: Keep, graphs: Mapping[str, fx.Graph], units: Ids) -> Origin:
        """Return the origin after one more shrink.

        Parameters
        ----------
        keep : bool array, shape (n_units,)
            The masks of the model until now.
        graphs : mapping of str to fx.Graph
        units : int array
            Which of its units are left.
        """
        return replace(self, graphs=dict(graphs), left=self.full(keep), units=self.units[units])

    def graph(self, key: str) -> fx.Graph:
        """Return a new copy of one of the graphs."""
        return copy.deepcopy(self.graphs[key])

    def __reduce__(self) -> tuple[Any, ...]:
        records = {key: graph_to_records(graph) for key, graph in self.graphs.items()}
        return _rebuild, (self.plan, records, self.left, self.units)


def _rebuild(plan: Plan, records: Mapping[str, list[Record]], left: Keep, units: Ids) -> Origin:
    graphs = {key: graph_from_records(r) for key, r in records.items()}
    return Origin(plan, graphs, left, units)
