"""Find the branches of a model: operands of residual adds that its graphs can do without.

In ``s = a + b`` the operand ``a`` is a branch when ``b`` can take the place of ``s``:

* both depend on the values of one tensor that comes from the model's inputs, which tells a branch
  from a table of positions, a bias or a mask;
* ``b`` has the shape and dtype of ``s``, also with larger inputs if the graph takes any
  (`fxprune.analysis.other_sizes`);
* what is needed only for ``a`` holds an operator with parameters.

When both operands are branches, one must stay: that which leads the stream on without an operator
with parameters, else that with fewer parameters. A branch is one unit in the graphs of all modes,
so it is found in all of them, by the parameters it uses, or not at all. Nor is it offered where its
end would be felt elsewhere (in memory that it writes to), or where costs would need too many terms
(`fxprune.analysis.liveness`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import fx, nn

from fxprune.analysis.branch_names import branch_names
from fxprune.analysis.graph_facts import GraphFacts
from fxprune.analysis.ids import IdSpace, Owner
from fxprune.analysis.liveness import (
    ALL,
    Clauses,
    ConflictError,
    either,
    implies,
    liveness,
    priced,
)
from fxprune.analysis.other_sizes import shapes_elsewhere
from fxprune.analysis.plan import BranchSite, Member
from fxprune.analysis.summands import summands
from fxprune.analysis.trace import GraphTrace
from fxprune.borders import split_key
from fxprune.rules import Registry

__all__ = ["Branches", "find_branches"]


@dataclass(frozen=True, slots=True)
class Branches:
    """The branches of a model.

    Attributes
    ----------
    sites : mapping of str to tuple of BranchSite
        By graph.
    members : mapping of int to tuple of Member
        By the id of a branch: the parameters that die with it, or those that it uses where all of
        them are used elsewhere too; each by its first axis.
    nodes : mapping of (str, str) to Clauses
        By graph and node: when a node is needed, where that is not always.
    parameters : mapping of str to Clauses
        The same of parameters.
    """

    sites: Mapping[str, tuple[BranchSite, ...]] = field(default_factory=dict)
    members: Mapping[int, tuple[Member, ...]] = field(default_factory=dict)
    nodes: Mapping[tuple[str, str], Clauses] = field(default_factory=dict)
    parameters: Mapping[str, Clauses] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A branch: in each graph of its model or region, the sum and which operand of it."""

    places: Mapping[str, tuple[fx.Node, int]]
    uses: frozenset[str]
    weight: int
    is_bypassed: bool = False


def find_branches(
    root: nn.Module,
    graphs: Mapping[str, fx.Graph],
    traces: Mapping[str, GraphTrace],
    names: Mapping[int, tuple[str, str]],
    space: IdSpace,
    stays: Callable[[str], bool],
    rules: Registry,
) -> Branches:
    """Find the branches and give each an id of its own.

    Parameters
    ----------
    root : nn.Module
    graphs, traces : mapping
        By mode, or by region and mode.
    names : mapping
        ``id(tensor)`` of every parameter and buffer to its name and kind.
    space : IdSpace
        Receives the ids.
    stays : callable
        Given a parameter's name, whether it may not go.
    rules : Registry
    """
    facts = {
        key: GraphFacts(
            root,
            graph,
            traces[key],
            names,
            partial(shapes_elsewhere, root, graph, traces[key], names, rules),
        )
        for key, graph in graphs.items()
        if key in traces and not _refuses(graph)
    }
    found: list[_Candidate] = []
    for path in dict.fromkeys(split_key(key)[0] for key in facts):
        mine = {key: one for key, one in facts.items() if split_key(key)[0] == path}
        found += _matched({key: _candidates(key, one, stays) for key, one in mine.items()})
    found, needed = _settled(found, facts)
    parameters = _parameters(facts, needed)
    parameters = {name: ALL if stays(name) else when for name, when in parameters.items()}
    return _numbered(root, found, needed, parameters, space)


def _refuses(graph: fx.Graph) -> bool:
    """Return whether this is the graph of a mode that could not be captured."""
    return any(node.target is torch._assert and node.args[0] is False for node in graph.nodes)


def _candidates(key: str, facts: GraphFacts, stays: Callable[[str], bool]) -> list[_Candidate]:
    """Return the branches of one graph, in its order."""
    found = []
    for node in facts.graph.nodes:
        pair = summands(node)
        if pair is None or not facts.related(*pair):
            continue
        options = []
        for place, operand in enumerate(pair):
            dying = facts.needed_only_for(node, operand)
            uses = facts.parameters_of(dying)
            if not uses or any(map(stays, uses)) or facts.has_effects(dying):
                continue
            if facts.alike(node, pair[1 - place]):
                weight = facts.weight(dying)
                bypassed = facts.bypasses(pair[1 - place], operand)
                options.append(_Candidate({key: (node, place)}, uses, weight, bypassed))
        if options:
            found.append(max(options, key=lambda one: (one.is_bypassed, one.weight)))
    return found


def _matched(found: Mapping[str, Sequence[_Candidate]]) -> list[_Candidate]:
    """Join the branches of several graphs of one thing that use the same parameters, in order."""
    counts = [Counter(one.uses for one in mine) for mine in found.values()]
    first, *others = found.values()
    waiting = [{} for _ in others]  # type: list[dict[frozenset[str], list[_Candidate]]]
    for table, mine in zip(waiting, others, strict=True):
        for one in mine:
            table.setdefault(one.uses, []).append(one)
    joined = []
    for one in first:
        if len({count[one.uses] for count in counts}) == 1:
            twins = [one, *(table[one.uses].pop(0) for table in waiting)]
            places = {key: at for twin in twins for key, at in twin.places.items()}
            joined.append(_Candidate(places, one.uses, one.weight))
    return joined


def _settled(
    found: Sequence[_Candidate], facts: Mapping[str, GraphFacts]
) -> tuple[list[_Candidate], dict[str, dict[fx.Node, Clauses]]]:
    """Give up branches until the rest can be removed in any combination, at a known cost."""
    kept = dict(enumerate(found))
    while True:
        needed: dict[str, dict[fx.Node, Clauses]] = {}
        try:
            for key, one in facts.items():
                sites = {
                    candidate.places[key][0]: (candidate.places[key][1], number)
                    for number, candidate in kept.items()
                    if key in candidate.places
                }
                needed[key] = liveness(one.graph, sites)
                one.check_writes(needed[key], sites)
                for node in one.counted:
                    priced(needed[key][node])
            _parameters(facts, needed)
        except ConflictError as conflict:
            del kept[min(conflict.branches, key=lambda number: (kept[number].weight, number))]
        else:
            break
    numbers = {number: place for place, number in enumerate(kept)}
    renumbered = {
        key: {
            node: frozenset(frozenset(numbers[b] for b in way) for way in when)
            for node, when in mine.items()
        }
        for key, mine in needed.items()
    }
    return list(kept.values()), renumbered


def _parameters(
    facts: Mapping[str, GraphFacts], needed: Mapping[str, Mapping[fx.Node, Clauses]]
) -> dict[str, Clauses]:
    """Return when each parameter is needed: when a node that uses it is."""
    uses: dict[str, list[Clauses]] = {}
    for key, one in facts.items():
        for node, names in one.parameters.items():
            for name in names:
                uses.setdefault(name, []).append(needed[key][node])
    return {name: priced(either(clauses)) for name, clauses in uses.items()}


def _numbered(
    root: nn.Module,
    found: Sequence[_Candidate],
    needed: Mapping[str, Mapping[fx.Node, Clauses]],
    parameters: Mapping[str, Clauses],
    space: IdSpace,
) -> Branches:
    sizes = {name: parameter.numel() for name, parameter in root.named_parameters()}
    dying = []
    for number, one in enumerate(found):
        alone = frozenset((frozenset((number,)),))
        mine = [name for name in sizes if implies(parameters.get(name, ALL), alone)]
        dying.append(mine or [name for name in sizes if name in one.uses])
    ids = [int(space.fresh(1, Owner(name, 0, "branch"))[0]) for name in branch_names(dying, sizes)]

    def by_id(when: Clauses) -> Clauses:
        return frozenset(frozenset(ids[number] for number in way) for way in when)

    sites = {
        key: tuple(
            BranchSite(one.places[key][0].name, one.places[key][1], ids[number])
            for number, one in enumerate(found)
            if key in one.places
        )
        for key in needed
    }
    nodes = {
        (key, node.name): by_id(when)
        for key, mine in needed.items()
        for node, when in mine.items()
        if when != ALL
    }
    return Branches(
        sites,
        {i: tuple(Member(n, 0) for n in mine) for i, mine in zip(ids, dying, strict=True)},
        nodes,
        {name: by_id(when) for name, when in parameters.items() if when != ALL},
    )
