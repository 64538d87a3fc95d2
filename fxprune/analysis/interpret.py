"""Walk a captured graph node by node under the tracker and note what each value looked like."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune._compat import no_attention_fastpath, storage_key
from fxprune._graphs import fetch, plain_arguments
from fxprune.analysis.axes import TensorIds
from fxprune.analysis.foreign import run_blindly
from fxprune.analysis.nodes import RESIZABLE, describe_node, is_plain, is_torch
from fxprune.analysis.op import flat_tensors
from fxprune.analysis.sizes import SizeBook
from fxprune.analysis.trace import GraphTrace, form_of
from fxprune.analysis.tracker import Tracker
from fxprune.analysis.whole import WholeOperators
from fxprune.errors import FxpruneError, InputError, UnsupportedOpError
from fxprune.gated_leaves import gated_leaf
from fxprune.statistics import find_twin, to_gated

LOOKUPS = (operator.getitem, torch.index_select, "index_select")
"""Targets whose look-ups by number `resize_literals` can rewrite."""

__all__ = ["bind_inputs", "interpret"]


def interpret(
    root: nn.Module,
    graph: fx.Graph,
    tracker: Tracker,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Mapping[int, tuple[str, str]],
    carried: Sequence[TensorIds | None] = (),
) -> GraphTrace:
    """Run a graph on meta tensors under `tracker`.

    Parameters
    ----------
    root : nn.Module
        Holds the modules and tensors the graph names; read, never changed.
    graph : fx.Graph
    tracker : Tracker
        Receives the ids, contractions and costs.
    args, kwargs
        Example inputs; only their shapes and dtypes matter.
    names : mapping
        ``id(tensor)`` of every parameter and buffer to (fully qualified name, kind).
    carried : sequence of (TensorIds or None), optional
        For each tensor among the inputs, in order: the ids it carries, if it comes from another
        graph.

    Raises
    ------
    InputError
        If the graph does not run on inputs of these shapes; names the node and the shapes it saw.
    """
    return _Walk(root, graph, tracker, names).run(args, kwargs, carried)


class _Walk:
    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        tracker: Tracker,
        names: Mapping[int, tuple[str, str]],
    ) -> None:
        self.root = root
        self.graph = graph
        self.tracker = tracker
        self.names = names
        self.env: dict[fx.Node, Any] = {}
        self.clones: dict[int, nn.Module] = {}
        self.trace = GraphTrace()
        self.sizes = SizeBook(tracker, self.env)
        self.trace.sizes = self.sizes.widths
        self.trace.whole_sizes = self.sizes.wholes

    def run(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        carried: Sequence[TensorIds | None],
    ) -> GraphTrace:
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        given = self._meta(tuple(args)), self._meta(dict(kwargs))
        values = bind_inputs(placeholders, *given)
        tracker, trace = self.tracker, self.trace
        for tensor, ids in zip(flat_tensors(given), carried, strict=False):
            tracker.carry(tensor, ids)
        tracker.contractions, tracker.statistics = trace.contractions, trace.statistics
        tracker.terms, tracker.lookups = trace.terms, trace.lookups
        tracker.weights = trace.weights
        whole = WholeOperators(tracker.run_whole)
        with torch.no_grad(), no_attention_fastpath(), tracker, whole:
            for node in self.graph.nodes:
                self._step(node, values)
        return trace

    def _meta(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        if isinstance(value, (list, tuple)):
            return tuple(self._meta(v) for v in value)
        if isinstance(value, dict):
            return {k: self._meta(v) for k, v in value.items()}
        return value

    def _step(self, node: fx.Node, values: Mapping[str, Any]) -> None:
        tracker = self.tracker
        tracker.node, tracker.where = node.name, describe_node(node)
        tracker.inputs = {}
        for source in node.all_input_nodes:
            for tensor in flat_tensors(self.env[source]):
                tracker.inputs.setdefault(id(tensor), []).append(source.name)
        tracker.rewrites_lookups = node.target in LOOKUPS
        tracker.opaque = not is_torch(self.root, node)
        tracker.has_twin = self._has_twin(node)
        tracker.mutated.clear()
        try:
            value = self._value(node, values)
        except FxpruneError:
            raise
        except Exception as error:  # noqa: BLE001  # told, where nothing else helps
            value = self._blind_value(node, error)
        mutated = list(tracker.mutated)
        if tracker.opaque and not _transparent(value):
            self._freeze_handed_over(node)
        tracker.finish_node(value)
        self.env[node] = value
        self._remember(node, value, mutated)

    def _has_twin(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return to_gated(fetch(self.root, str(node.target))) is not None
        return find_twin(node) is not None

    def _value(self, node: fx.Node, values: Mapping[str, Any]) -> Any:
        if node.op == "placeholder":
            self.tracker.mark_inputs(values[node.name])
            return values[node.name]
        if node.op == "get_attr":
            return self._attribute(str(node.target))
        args = plain_arguments(node.args, self.env.__getitem__)
        kwargs = plain_arguments(node.kwargs, self.env.__getitem__)
        if node.op == "call_module":
            module = fetch(self.root, str(node.target))
            clone = self._clone(module)
            if gated_leaf(module) is not None and is_plain(module):
                self.tracker.held = {id(t): k for k, t in clone.named_parameters(recurse=False)}
            value = clone(*args, **kwargs)
            self.tracker.held = {}
            self._freeze_unknown(module, [args, kwargs, value])
            return value
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            target: Callable[..., Any] = node.target  # type: ignore[assignment]
            if target is torch._assert and args[0] is False:
                return None  # the graph of a mode that could not be captured
            return target(*args, **kwargs)
        self.trace.outputs = [self.tracker.record(t).ids for t in flat_tensors(args[0])]
        return args[0]

    def _blind_value(self, node: fx.Node, error: Exception) -> Any:
        """Run foreign code that does not run without data on zeros; freeze what it touches."""
        args = plain_arguments(node.args, self.env.__getitem__)
        kwargs = plain_arguments(node.kwargs, self.env.__getitem__)
        held: list[Tensor] = []
        try:
            if not self.tracker.opaque:
                raise error
            call: Any = node.target
            if node.op == "call_method":
                call, args = args[0].apply, args[1:]
            if node.op == "call_module":
                module = fetch(self.root, str(node.target))
                held = [self._twin(t) for t in module.parameters()]
                call = copy.deepcopy(module).eval()
            value = run_blindly(call, args, kwargs)
        except Exception:  # noqa: BLE001  # the first failure says more
            raise self._failed(node, error) from error
        for tensor in flat_tensors([args, kwargs, held]):
            for axis in self.tracker.record(tensor).ids:
                reason = f"{self.tracker.where} is foreign code that needs data to run"
                self.tracker.space.freeze(axis, reason)
        return value

    def _freeze_unknown(self, module: nn.Module, around: Any) -> None:
        """Freeze what a module keeps to itself: sizes nobody updates, or foreign code around it."""
        kind = type(module).__name__
        held = [self._twin(t) for t in module.parameters()]
        if held and not is_plain(module):
            reason = f"{self.tracker.where} is a {kind} with code that is not torch's own"
            held += flat_tensors(around)
        elif not isinstance(module, RESIZABLE):
            reason = f"{self.tracker.where} is a {kind}, which is kept whole"
        else:
            return
        for tensor in held:
            for axis in self.tracker.record(tensor).ids:
                self.tracker.space.freeze(axis, reason)

    def _freeze_handed_over(self, node: fx.Node) -> None:
        """Freeze what goes into an object that hides its tensors: it may come out anywhere."""
        for source in node.all_input_nodes:
            for tensor in flat_tensors(self.env[source]):
                for axis in self.tracker.record(tensor).ids:
                    reason = f"{self.tracker.where} hides it in an object"
                    self.tracker.space.freeze(axis, reason)

    def _attribute(self, target: str) -> Any:
        value = fetch(self.root, target)
        return self._twin(value) if isinstance(value, Tensor) else value

    def _twin(self, tensor: Tensor) -> Tensor:
        name, kind = self.names.get(id(tensor), ("", "node"))
        return self.tracker.to_meta(tensor, name, kind)

    def _clone(self, module: nn.Module) -> nn.Module:
        """Return a shallow copy of a leaf module with meta parameters, in evaluation mode."""
        known = self.clones.get(id(module))
        if known is not None:
            return known
        clone: nn.Module = module.__class__.__new__(module.__class__)
        self.clones[id(module)] = clone
        clone.__dict__.update(module.__dict__)
        state = clone.__dict__
        state["training"] = False
        for store in ("_parameters", "_buffers"):
            state[store] = {
                k: None if t is None else self._twin(t) for k, t in getattr(module, store).items()
            }
        state["_modules"] = {
            k: None if m is None else self._clone(m) for k, m in module._modules.items()
        }
        for key, held in list(state.items()):
            if isinstance(held, list) and held and all(isinstance(t, Tensor) for t in held):
                state[key] = [self._twin(t) for t in held]
        return clone

    def _failed(self, node: fx.Node, error: Exception) -> FxpruneError:
        if isinstance(error, NotImplementedError) and "meta" in str(error).lower():
            return UnsupportedOpError(
                "the shape of a result depends on the data, which no captured graph can follow",
                where=describe_node(node),
                seen=str(error).partition(".")[0],
                hint="replace boolean indexing by torch.where or a product with the mask",
            )
        shapes = ", ".join(
            str(tuple(t.shape))
            for source in node.all_input_nodes
            for t in flat_tensors(self.env.get(source))
        )
        return InputError(
            f"the model does not run on these example inputs: {type(error).__name__}: {error}",
            where=describe_node(node),
            seen=f"inputs of that node: {shapes or 'none'}",
            hint="pass example_inputs of the shape the model is used with",
        )

    def _remember(self, node: fx.Node, value: Any, mutated: list[Tensor]) -> None:
        tensors = flat_tensors(value)
        records = [self.tracker.record(t) for t in tensors]
        trace = self.trace
        if any(axis is not None for r in records for axis in r.ids):
            trace.values[node.name] = tuple((tuple(r.tensor.shape), r.ids) for r in records)
            trace.arguments[node.name] = fx.map_arg(node.args, self._plain)
            trace.keywords[node.name] = fx.map_arg(node.kwargs, self._plain)
        if isinstance(value, Tensor) or (tensors and isinstance(value, (list, tuple))):
            trace.shapes[node.name] = tuple((tuple(t.shape), t.dtype) for t in tensors)
            trace.forms[node.name] = form_of(value, itertools.count())
            trace.storages[node.name] = storage_key(tensors[0])
        elif not tensors:
            trace.plain[node.name] = value
        if node.op in ("placeholder", "output", "get_attr"):
            return
        self.sizes.note(node, value)
        changed = {id(t) for t in mutated}
        trace.writers += [(node.name, storage_key(t)) for t in mutated]
        for source in node.all_input_nodes:
            old = self.env[source]
            if isinstance(old, Tensor) and old is value and id(old) in changed:
                trace.redirects.append((source.name, node.name))

    def _plain(self, node: fx.Node) -> Any:
        value = self.env[node]
        return None if flat_tensors(value) else value


def _transparent(value: Any) -> bool:
    """Return whether all tensors in a value can be seen."""
    if isinstance(value, (list, tuple)):
        return all(_transparent(v) for v in value)
    if isinstance(value, dict):
        return all(_transparent(v) for v in value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return all(_transparent(getattr(value, f.name)) for f in fields(value))
    plain = (Tensor, bool, int, float, complex, str, slice, torch.dtype, torch.device, type(None))
    return isinstance(value, plain)


def bind_inputs(
    nodes: Sequence[fx.Node], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the value of each placeholder by its name, as Python binds arguments."""
    form = "pass example_inputs as a tensor, a tuple of positional or a dict of keyword arguments"
    if len(args) > len(nodes):
        raise InputError(f"the model takes {len(nodes)} inputs, {len(args)} were given", hint=form)
    values: dict[str, Any] = {}
    for place, node in enumerate(nodes):
        name = str(node.target).lstrip("*")
        if place < len(args):
            values[node.name] = args[place]
        elif name in kwargs:
            values[node.name] = kwargs[name]
        elif node.args:
            values[node.name] = node.args[0]
        else:
            raise InputError(
                f"no example input for the argument {name!r} of the model's forward",
                hint=form,
            )
    unknown = set(kwargs) - {str(n.target).lstrip("*") for n in nodes}
    if unknown:
        raise InputError(
            f"the model's forward has no argument {sorted(unknown)[0]!r}",
            seen=", ".join(str(n.target) for n in nodes),
        )
    return values
