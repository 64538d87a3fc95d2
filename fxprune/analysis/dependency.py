"""The dependency graph: which parameter axes are coupled, and by which operation."""

from __future__ import annotations

import networkx as nx
import numpy as np

from fxprune.analysis.plan import Member, Plan

__all__ = ["dependency_graph"]


def dependency_graph(plan: Plan) -> nx.MultiGraph[Member]:
    """Build the dependency graph of a plan.

    Returns
    -------
    networkx.MultiGraph
        A node per parameter and buffer axis (`Member`) with attributes ``size`` (positions) and
        ``groups`` (names of the groups it belongs to). An edge per pair of axes that one operation
        tied, with attributes ``operation`` (node, module and source line) and ``count`` (how many
        positions it tied).
    """
    graph: nx.MultiGraph[Member] = nx.MultiGraph()
    owner = np.full(len(plan.units), -1, dtype=np.int64)
    members = []
    ends = np.cumsum([group.size for group in plan.groups])
    for number, ((name, dim), ids) in enumerate(plan.axes.items()):
        owner[ids] = number
        members.append(Member(name, dim))
        used = np.unique(plan.units[ids])
        touched = np.unique(np.searchsorted(ends, used[used != plan.n_units], side="right"))
        names = [plan.groups[g].name for g in touched.tolist()]
        graph.add_node(members[-1], size=len(ids), groups=names)
    said = set()
    for tie in plan.ties:
        key = (tie.where, tie.a.tobytes(), tie.b.tobytes())
        if key in said:  # the graph of the other mode says it again
            continue
        said.add(key)
        pairs = np.stack([owner[tie.a], owner[tie.b]], axis=1)
        pairs = pairs[(pairs >= 0).all(axis=1) & (pairs[:, 0] != pairs[:, 1])]
        distinct, counts = np.unique(pairs, axis=0, return_counts=True)
        for (a, b), count in zip(distinct.tolist(), counts.tolist(), strict=True):
            graph.add_edge(members[a], members[b], operation=tie.where, count=count)
    return graph
