"""Names of branches: where the modules that die with each have their place in the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile

__all__ = ["branch_names"]


def branch_names(dying: Sequence[Sequence[str]], sizes: Mapping[str, int]) -> list[str]:
    """Return a name for each branch.

    That is the path which the modules that die have in common. Where several branches share it, as
    the attention and the MLP of one block do, it goes on to the child with the most parameters.

    Parameters
    ----------
    dying : sequence of sequence of str
        For each branch, its parameters.
    sizes : mapping
        Elements of every parameter.
    """
    paths = [_common(names) for names in dying]
    shared = Counter(paths)
    return [
        _heaviest(path, names, sizes) if not path or shared[path] > 1 else path
        for path, names in zip(paths, dying, strict=True)
    ]


def _common(names: Sequence[str]) -> str:
    owners = [name.split(".")[:-1] for name in names]
    alike = takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))
    return ".".join(parts[0] for parts in alike)


def _heaviest(path: str, names: Sequence[str], sizes: Mapping[str, int]) -> str:
    """Return the path one step further down, to where most parameters are."""
    depth = len(path.split(".")) if path else 0
    weights: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        child = parts[: depth + 1] if len(parts) > depth + 1 else parts[:depth] or parts
        weights[".".join(child)] += sizes[name]
    return max(weights, key=lambda child: weights[child])
