"""What is left of a model's graphs and modules when branches have been taken out of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxprune._graphs import fetch
from fxprune.analysis.plan import Keep, Plan
from fxprune.analysis.restrict import GraphRest
from fxprune.analysis.summands import summands

__all__ = ["Leftovers", "remove_modules"]

_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What removed branches leave.

    Attributes
    ----------
    rests : mapping of str to GraphRest
        By graph that lost nodes.
    modules : frozenset of str
        Paths of the modules that nothing calls any more and whose tensors are all gone.
    tensors : frozenset of str
        Names, all there are, of the parameters and buffers that are gone.
    """

    rests: Mapping[str, GraphRest]
    modules: frozenset[str] = _NOTHING
    tensors: frozenset[str] = _NOTHING

    @classmethod
    def of(
        cls,
        root: nn.Module,
        before: Mapping[str, fx.Graph],
        after: Mapping[str, fx.Graph],
        plan: Plan,
        keep: Keep,
    ) -> Leftovers:
        """Compare graphs before and after.

        Parameters
        ----------
        root : nn.Module
            What they refer to.
        before, after : mapping of str to fx.Graph
        plan : Plan
            Of the graphs, with all their branches.
        keep : bool array, shape (n_units,)
        """
        rests = {
            key: GraphRest(frozenset(node.name for node in graph.nodes), instead)
            for key, graph in after.items()
            if (instead := _instead(before[key], plan, key, keep))
        }
        if not rests:
            return cls({})
        now = _targets(after.values())
        lost = _targets(before.values()) - now
        alive = {id(tensor) for name in now for _, tensor in _tensors(root, name)}
        dead = {
            name
            for target in lost
            for name, tensor in _tensors(root, target)
            if id(tensor) not in alive
        }
        modules = {
            target
            for target in lost
            if not isinstance(fetch(root, target), Tensor)
            and all(name in dead for name, _ in _tensors(root, target))
            and not any(other.startswith(f"{target}.") for other in now)
        }
        return cls(rests, frozenset(modules), frozenset(dead))


def _instead(graph: fx.Graph, plan: Plan, key: str, keep: Keep) -> dict[str, str]:
    """Return for each sum that loses an operand the name of the other one."""
    removed = {site.node: site for site in plan.removed(key, keep)}
    found = {}
    for node in graph.nodes:
        pair = summands(node) if node.name in removed else None
        if pair is not None:
            found[node.name] = pair[1 - removed[node.name].operand].name
    return found


def _targets(graphs: Iterable[fx.Graph]) -> set[str]:
    return {
        str(node.target)
        for graph in graphs
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }


def _tensors(root: nn.Module, target: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every name and tensor that a node with this target uses."""
    held = fetch(root, target)
    if isinstance(held, Tensor):
        yield target, held
    elif isinstance(held, nn.Module):
        for name, tensor in (
            *held.named_parameters(remove_duplicate=False),
            *held.named_buffers(remove_duplicate=False),
        ):
            yield f"{target}.{name}", tensor


def remove_modules(root: nn.Module, left: Leftovers) -> None:
    """Take modules and tensors that are gone out of a model, and what only held them."""
    for path in sorted(left.modules):
        parent, _, leaf = path.rpartition(".")
        root.get_submodule(parent)._modules.pop(leaf, None)
    for name in left.tensors:
        parent, _, leaf = name.rpartition(".")
        try:
            owner = root.get_submodule(parent)
        except AttributeError:  # it went with its module
            continue
        owner._parameters.pop(leaf, None)
        owner._buffers.pop(leaf, None)
        owner._non_persistent_buffers_set.discard(leaf)
    for path in sorted(left.modules | left.tensors, key=len, reverse=True):
        _drop_empty(root, path.rpartition(".")[0])


def _drop_empty(root: nn.Module, path: str) -> None:
    """Remove a module that tracing made to hold others, and those above it, if it holds none."""
    while path:
        parent, _, leaf = path.rpartition(".")
        try:
            module = root.get_submodule(path)
        except AttributeError:
            return
        if type(module) is not nn.Module or module._modules or module._parameters:
            return
        if module._buffers:
            return
        root.get_submodule(parent)._modules.pop(leaf)
        path = parent
