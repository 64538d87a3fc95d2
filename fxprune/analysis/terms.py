"""Cost terms: constants times the kept counts of runs of ids, with every distinct run numbered."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fxprune.analysis.grouping import Grouping
from fxprune.analysis.ids import Ids
from fxprune.analysis.liveness import Clauses, products
from fxprune.analysis.plan import CostTerms

__all__ = ["RunTable", "Term", "parameter_term", "while_needed"]

Term = tuple[int, tuple[Ids, ...]]
"""A constant factor, and the runs of ids whose kept counts multiply it."""


class RunTable:
    """Numbers the distinct runs of ids; runs without units become plain factors."""

    def __init__(self, grouping: Grouping) -> None:
        self._units = grouping.resolution.units
        self._none = grouping.resolution.n_units
        self._numbers: dict[bytes, int | None] = {}
        self.runs: list[Ids] = []

    def _number(self, ids: Ids) -> int | None:
        rows = self._units[ids]
        key = rows.tobytes()
        if key not in self._numbers:
            free = bool((rows != self._none).any())
            self._numbers[key] = len(self.runs) if free else None
            if free:
                self.runs.append(ids)
        return self._numbers[key]

    def terms(self, terms: Sequence[Term]) -> CostTerms:
        """Return a sum of terms, those with the same runs as one."""
        total: dict[tuple[int, ...], int] = {}
        for factor, runs in terms:
            numbers = []
            for ids in runs:
                number = self._number(ids)
                if number is None:
                    factor *= len(ids)
                else:
                    numbers.append(number)
            key = tuple(sorted(numbers))
            total[key] = total.get(key, 0) + factor
        return CostTerms(tuple(total.values()), tuple(total))


def parameter_term(name: str, shape: tuple[int, ...], axes: Mapping[tuple[str, int], Ids]) -> Term:
    """Return the number of elements of a parameter."""
    runs = tuple(axes[name, d] for d in range(len(shape)) if (name, d) in axes)
    fixed = math.prod(n for d, n in enumerate(shape) if (name, d) not in axes)
    return fixed, runs


def while_needed(factor: int, runs: tuple[Ids, ...], needed: Clauses) -> Iterator[Term]:
    """Yield a term times the condition that it counts at all: a branch is a run of one id."""
    for sign, branches in products(needed):
        gates = (np.array([branch], dtype=np.int64) for branch in sorted(branches))
        yield sign * factor, (*runs, *gates)
