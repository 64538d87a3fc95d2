"""Open the calls that symbolic tracing could not look into.

These are functions of the user's or a library's own (marked with ``torch.fx.wrap``, as torchvision
does with its window attention), torch's transformer containers and `nn.MultiheadAttention`. Each
is traced at its call site, where shapes are known (see `shaped`), and its nodes take the place of
the call. Where that fails, the call stays as it is, and the analysis freezes what it must.

Sizes other than the batch that the code reads are numbers then, as the example inputs have them;
inputs of another such size are refused by an assertion rather than computed wrongly.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from fxprune._compat import no_attention_fastpath
from fxprune._graphs import fetch, plain_arguments
from fxprune.analysis.foreign import run_blindly
from fxprune.analysis.interpret import bind_inputs
from fxprune.analysis.nodes import is_plain, is_torch
from fxprune.capture.containers import CONTAINERS, readable_forward
from fxprune.capture.multihead import explicit_attention, prepare_attention
from fxprune.capture.shaped import MetaTwins, ShapedTracer, Twin
from fxprune.errors import CaptureError, FxpruneError
from fxprune.inputs import Inputs

__all__ = ["open_calls"]

Traced = tuple[ShapedTracer, fx.Graph]

_ROUNDS = 4  # a function may call another one that was wrapped


def open_calls(
    root: nn.Module,
    graph: fx.Graph,
    args: Any,
    kwargs: Mapping[str, Any],
    *,
    any_size: bool = False,
) -> bool:
    """Replace opaque calls of a graph by what they do.

    Parameters
    ----------
    root : nn.Module
        Holds the modules and tensors the graph names; constants found are added to it.
    graph : fx.Graph
        Rewritten.
    args, kwargs
        Example inputs.
    any_size : bool
        Leave a function closed where a size became a number.

    Returns
    -------
    bool
        Whether any call was opened.
    """
    with torch.no_grad(), no_attention_fastpath():
        opened = [
            _open_at(root, graph, (tuple(args), dict(kwargs)), more, any_size) for more in (1, 0)
        ]
    return any(opened)


def _open_at(root: nn.Module, graph: fx.Graph, inputs: Inputs, more: int, any_size: bool) -> bool:
    """Open what can be opened when the second batch size is `more` than the first.

    Where the batch is not axis 0, or a mask of batch times heads does not grow with it, the model
    may run at one batch size only. Torch's own attention is opened even so: it reads no size.
    """
    changed, refused = False, set[fx.Node]()
    values: dict[fx.Node, Twin] = {}
    traces: dict[Any, Traced] = {}
    for _ in range(_ROUNDS):
        calls = [n for n in graph.nodes if n not in refused and _is_opaque(root, n)]
        if more == 0:
            calls = [n for n in calls if n.op == "call_module"]
        if calls and not (values and all(values.keys() >= {*n.all_input_nodes} for n in calls)):
            values = _walk(root, graph, *inputs, more) or {}
        if not calls or not values:
            break
        for node in calls:
            if _Opening(root, graph, node, values, traces, any_size).run():
                changed = True
            else:
                refused.add(node)
    return changed


def _is_opaque(root: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_function":
        return not is_torch(root, node) and hasattr(node.target, "__code__")
    if node.op != "call_module":
        return False
    module = fetch(root, str(node.target))
    return isinstance(module, (nn.MultiheadAttention, *CONTAINERS)) and is_plain(module)


def _walk(
    root: nn.Module, graph: fx.Graph, args: Any, kwargs: Mapping[str, Any], more: int
) -> dict[fx.Node, Twin] | None:
    """Return every node's value at two batch sizes, or None if it does not run at both."""
    twins = MetaTwins()
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    sides: list[dict[fx.Node, Any]] = []
    try:
        for grown in (0, more):
            given = _enlarged(twins.value((tuple(args), dict(kwargs))), grown)
            bound = bind_inputs(placeholders, *given)
            env: dict[fx.Node, Any] = {}
            for node in graph.nodes:
                if node.op == "placeholder":
                    env[node] = bound[node.name]
                elif node.op != "output":
                    env[node] = _value(twins, root, node, env)
            sides.append(env)
    except FxpruneError:
        return None
    except Exception:  # noqa: BLE001  # the analysis tells the user, with more to say
        return None
    return {node: (value, sides[1][node]) for node, value in sides[0].items()}


def _value(twins: MetaTwins, root: nn.Module, node: fx.Node, env: Mapping[fx.Node, Any]) -> Any:
    """Return a node's value on meta tensors; foreign code may need data for it."""
    try:
        return twins.run(root, node, env.__getitem__)
    except Exception:
        if node.op != "call_function" or is_torch(root, node):
            raise
        target: Any = node.target
        args, kwargs = (plain_arguments(a, env.__getitem__) for a in (node.args, node.kwargs))
        return run_blindly(target, args, kwargs)


def _enlarged(value: Any, more: int) -> Any:
    """Give every tensor that has the first one's batch size a larger one."""
    first = next((t for t in _tensors(value) if t.dim()), None)
    batch = None if first is None else first.shape[0]

    def change(given: Any) -> Any:
        if isinstance(given, Tensor):
            same = given.dim() and given.shape[0] == batch
            return given.new_empty((given.shape[0] + more, *given.shape[1:])) if same else given
        if isinstance(given, (list, tuple)):
            return type(given)(change(v) for v in given)
        return {k: change(v) for k, v in given.items()} if isinstance(given, dict) else given

    return change(value)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for v in items for t in _tensors(v)] if isinstance(value, (dict, list, tuple)) else []


class _Opening:
    """Opens one call."""

    def __init__(
        self,
        root: nn.Module,
        graph: fx.Graph,
        node: fx.Node,
        values: dict[fx.Node, Twin],
        traces: dict[Any, Traced],
        any_size: bool,
    ) -> None:
        self.root = root
        self.traces = traces
        self.graph = graph
        self.node = node
        self.values = values
        self.any_size = any_size
        self.inputs = list(node.all_input_nodes)
        self.module = fetch(root, str(node.target)) if node.op == "call_module" else None

    def run(self) -> bool:
        """Trace the call and put the result into the graph; return False if it cannot be."""
        if self.module is not None:
            for part in self.module.modules():
                if type(part) is nn.MultiheadAttention:
                    prepare_attention(part)
        try:
            tracer, traced = self._traced()
        except Exception:  # noqa: BLE001  # whatever it is: the call stays
            return False
        if not self._replaceable(traced) or not self._fits(tracer):
            return False
        self._splice(tracer, traced)
        return True

    def _fits(self, tracer: ShapedTracer) -> bool:
        """Return whether the trace holds for the sizes the call will see: modules take any."""
        return self.module is not None or not (self.any_size and (tracer.read or tracer.read_more))

    def _traced(self) -> Traced:
        """Trace the call; a function's calls that look alike are traced once.

        Raises
        ------
        Exception
            Whatever tracing raises, or a `CaptureError` if it does not do the same every time.
        """
        if self.module is not None:
            return self._trace()
        key = self._signature()
        if key in self.traces:
            return self.traces[key]
        tracer, traced = self._trace()
        if str(self._trace()[1]) != str(traced):
            raise CaptureError(f"{self.node.name} does not do the same every time")
        if key is not None and all(n.op != "get_attr" for n in traced.nodes):
            self.traces[key] = tracer, traced
        return tracer, traced

    def _signature(self) -> Any:
        """Return what decides about the trace of a function, or None if that is not plain."""
        numbers = {node: number for number, node in enumerate(self.inputs)}
        try:
            given = _signature_of((self.node.args, self.node.kwargs), numbers)
            inputs = _signature_of([self.values[n] for n in self.inputs], {})
        except TypeError:
            return None
        return self.node.target, given, inputs

    def _trace(self) -> Traced:
        twins = [self.values[n] for n in self.inputs]
        tracer = ShapedTracer(MetaTwins(), self._call, twins)
        root: Any = self.node.target if self.module is None else self.module
        return tracer, tracer.run(root)

    def _call(self, *values: Any) -> Any:
        known = dict(zip(self.inputs, values, strict=True))
        args = plain_arguments(self.node.args, known.__getitem__)
        kwargs = plain_arguments(self.node.kwargs, known.__getitem__)
        if self.module is None:
            target: Any = self.node.target
            return target(*args, **kwargs)
        if type(self.module) is nn.MultiheadAttention:
            return explicit_attention(self.module, *args, **kwargs)
        return readable_forward(self.module)(*args, **kwargs)

    def _replaceable(self, traced: fx.Graph) -> bool:
        """Return whether all that reads the call can read its result instead."""
        result = _result(traced)
        if isinstance(result, fx.Node):
            return True
        picks = all(
            u.target is operator.getitem and isinstance(u.args[1], int) for u in self.node.users
        )
        return isinstance(result, (list, tuple)) and picks

    def _splice(self, tracer: ShapedTracer, traced: fx.Graph) -> None:
        prefix = "" if self.module is None else f"{self.node.target}."
        shaped = [
            n for n in self.inputs if not isinstance(self.values[n][0], (bool, int, float, str))
        ]
        given = [n for n in traced.nodes if n.op == "placeholder"]
        numbers = {n: int(str(n.target).rpartition("_")[2]) for n in given}
        env = {n: self.inputs[number] for n, number in numbers.items()}
        made = []
        with self.graph.inserting_before(self.node):
            if self.module is None:
                for source in shaped:
                    made += self._check(source, tracer)
            for node in traced.nodes:
                if node.op in ("placeholder", "output"):
                    continue
                copied = self.graph.node_copy(node, env.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    copied.target = self._constant(tracer, node) or f"{prefix}{node.target}"
                env[node] = copied
                if node in tracer.found:
                    self.values[copied] = tracer.found[node]
                else:  # a constant
                    value = MetaTwins().tensor(fetch(tracer.root, str(node.target)))
                    self.values[copied] = value, value
                made.append(copied)
        self._replace(fx.map_arg(_result(traced), env.__getitem__))
        for node in reversed(made):
            if not node.users and _is_pure(node):
                self.graph.erase_node(node)

    def _constant(self, tracer: ShapedTracer, node: fx.Node) -> str | None:
        """Give the root a tensor that tracing found in a function, and return its name."""
        if self.module is not None or node.op != "get_attr":
            return None
        value = fetch(tracer.root, str(node.target))
        name = f"_tensor_constant_{self.node.name}_{str(node.target).rpartition('.')[2]}"
        while hasattr(self.root, name) and not torch.equal(getattr(self.root, name), value):
            name += "_"  # the graph of the other mode has another one
        self.root.register_buffer(name, value, persistent=False)
        return name

    def _check(self, source: fx.Node, tracer: ShapedTracer) -> list[fx.Node]:
        """Refuse inputs of other sizes than those that became numbers in the trace."""
        number = self.inputs.index(source)
        one, other = self.values[source]
        moving = isinstance(one, Tensor) and one.dim() > 1 and one.shape[0] != other.shape[0]
        if not moving:
            return []
        name = getattr(self.node.target, "__name__", self.node.name)
        made = []
        for dim in range(1, one.dim()):
            was_read = tracer.read_more or (number, dim) in tracer.read
            if was_read and one.shape[dim] == other.shape[dim] != 1:
                width = self.graph.call_method("size", (source, dim))
                same = self.graph.call_function(operator.eq, (width, one.shape[dim]))
                text = f"{name} was captured for inputs of other sizes: give auto_gate such inputs"
                made += [width, same, self.graph.call_function(torch._assert, (same, text))]
        return made

    def _replace(self, result: Any) -> None:
        if isinstance(result, fx.Node):
            self.node.replace_all_uses_with(result)
        else:
            for user in list(self.node.users):
                entry = result[user.args[1]]
                if isinstance(entry, fx.Node):
                    user.replace_all_uses_with(entry)
                else:
                    for reader in list(user.users):
                        _swap(reader, user, entry)
                self.graph.erase_node(user)
        self.graph.erase_node(self.node)


def _signature_of(value: Any, numbers: Mapping[fx.Node, int]) -> Any:
    """Return nested tuples that are equal where arguments are alike: nodes stand by number.

    Raises
    ------
    TypeError
        If there is anything but tensors, nodes and plain values.
    """
    if isinstance(value, fx.Node):
        return "node", numbers[value]
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if type(value) in (tuple, list, dict) or isinstance(value, (immutable_list, immutable_dict)):
        items = value.items() if isinstance(value, dict) else value
        return type(value), tuple(_signature_of(v, numbers) for v in items)
    if type(value) not in (int, float, bool, str, type(None), torch.Size, torch.dtype):
        raise TypeError
    return type(value), value


def _result(traced: fx.Graph) -> Any:
    return next(n for n in traced.nodes if n.op == "output").args[0]


def _swap(reader: fx.Node, node: fx.Node, value: Any) -> None:
    """Write a plain value where a node was read."""

    def chosen(given: fx.Node) -> Any:
        return value if given is node else given

    reader.args = fx.map_arg(reader.args, chosen)
    reader.kwargs = fx.map_arg(reader.kwargs, chosen)


def _is_pure(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    writes = name.endswith("_") or name in (
        "setitem",
        "_assert",
        "iadd",
        "isub",
        "imul",
        "itruediv",
    )
    return node.op in ("call_function", "call_method", "get_attr") and not writes
