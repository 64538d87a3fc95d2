"""When a node of a graph is needed, as a function of the branches that are kept.

A removed branch is an operand that is no longer added. A node is needed when one of its readers is,
over an edge that is kept::

    needed(output) = always
    needed(n)      = OR over readers u of  needed(u) AND kept(edge from n to u)

which is a disjunction of conjunctions of branches: a set of sets of branches, none of which holds
another. An identity shortcut makes it ``{{}}``, always, for nearly every node; inside a branch it
is ``{{branch}}``. What nobody reads (a check of a size, the batch counter of a norm) goes as soon
as something that it reads has gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, combinations, product

from torch import fx

from fxprune.analysis.summands import summands

__all__ = [
    "ALL",
    "LIMIT",
    "Clauses",
    "ConflictError",
    "both",
    "either",
    "implies",
    "liveness",
    "priced",
    "products",
]

Clauses = frozenset[frozenset[int]]
"""Alternatives, each a set of branches that all have to be kept."""

ALL: Clauses = frozenset((frozenset(),))
"""Always needed."""

LIMIT = 4
"""Most alternatives of anything that costs something: its cost is a sum over their subsets."""

_MOST = 64  # of anything else, such as a size that all branches read


class ConflictError(Exception):
    """Some branches cannot be offered together.

    Parameters
    ----------
    branches : frozenset of int
    """

    def __init__(self, branches: frozenset[int]) -> None:
        super().__init__(f"{len(branches)} branches")
        self.branches = branches


def either(clauses: Iterable[Clauses]) -> Clauses:
    """Return when at least one of several conditions holds."""
    ways = set(chain.from_iterable(clauses))
    return _checked(frozenset(way for way in ways if not any(other < way for other in ways)))


def both(a: Clauses, b: Clauses) -> Clauses:
    """Return when two conditions hold."""
    if ALL in (a, b):
        return b if a == ALL else a
    return either([frozenset(x | y for x, y in product(a, b))])


def _checked(clauses: Clauses) -> Clauses:
    return priced(clauses, _MOST)


def priced(clauses: Clauses, most: int = LIMIT) -> Clauses:
    """Return a condition that has few alternatives.

    Raises
    ------
    ConflictError
        If it has more than `most`.
    """
    if len(clauses) > most:
        raise ConflictError(frozenset(chain.from_iterable(clauses)))
    return clauses


def implies(a: Clauses, b: Clauses) -> bool:
    """Return whether `b` holds wherever `a` does."""
    return all(any(small <= way for small in b) for way in a)


def products(clauses: Clauses) -> Iterator[tuple[int, frozenset[int]]]:
    """Yield a condition as a sum of products of gates: signs, and the branches they multiply.

    By inclusion and exclusion, so that the sum is multilinear: exact for gates 0 and 1, the
    probability for independent gates between them.
    """
    ways = sorted(clauses, key=sorted)
    for count in range(1, len(ways) + 1):
        for chosen in combinations(ways, count):
            yield (-1) ** (count + 1), frozenset(chain.from_iterable(chosen))


def liveness(graph: fx.Graph, sites: Mapping[fx.Node, tuple[int, int]]) -> dict[fx.Node, Clauses]:
    """Return when each node of a graph is needed.

    Parameters
    ----------
    graph : fx.Graph
    sites : mapping of fx.Node to (int, int)
        Sums with a removable operand: which of the two, and the branch.

    Raises
    ------
    ConflictError
        If a node is needed in more ways than can be followed.
    """
    found: dict[fx.Node, Clauses] = {}
    for node in reversed(graph.nodes):
        uses = [_over(node, user, found[user], sites) for user in node.users if user in found]
        if node.op == "output":
            found[node] = ALL
        elif uses:
            found[node] = either(uses)
    needed = dict(found)
    for node in graph.nodes:
        if node in found:
            continue
        if node.op == "get_attr":
            found[node] = either(_beside(node, needed)) or ALL
        else:
            found[node] = _with_inputs(node, found)
    return found


def _over(
    node: fx.Node, user: fx.Node, needed: Clauses, sites: Mapping[fx.Node, tuple[int, int]]
) -> Clauses:
    """Return when a reader asks for a node."""
    place, branch = sites.get(user, (0, 0))
    pair = summands(user) if user in sites else None
    if pair is None or pair[place] is not node:
        return needed
    return both(needed, frozenset((frozenset((branch,)),)))


def _with_inputs(node: fx.Node, found: Mapping[fx.Node, Clauses]) -> Clauses:
    when = ALL
    for source in node.all_input_nodes:
        when = both(when, found[source])
    return when


def _beside(attribute: fx.Node, needed: Mapping[fx.Node, Clauses]) -> list[Clauses]:
    """Return when the other tensors of the module that holds one are needed."""
    owner = str(attribute.target).rpartition(".")[0]
    return [
        when
        for node, when in needed.items()
        if owner
        and (
            (node.op == "get_attr" and str(node.target).rpartition(".")[0] == owner)
            or (node.op == "call_module" and node.target == owner)
        )
    ]
