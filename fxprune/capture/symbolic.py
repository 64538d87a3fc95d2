"""Capture by torch.fx symbolic tracing, with the user's own modules kept as leaves.

The forward is traced once in evaluation and once in training mode (see `both_modes`), because a
traced ``if self.training:`` is baked in.
"""

from __future__ import annotations

import inspect
import operator
import re
import sys
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune._compat import forget_tracer
from fxprune.capture.both_modes import capture_modes
from fxprune.capture.draws import no_draws
from fxprune.capture.factories import traced_factories
from fxprune.capture.lines import raised_at
from fxprune.capture.own_gradients import call_of_function, kept_gradients
from fxprune.capture.proxies import TensorProxy, answered_types
from fxprune.errors import CaptureError
from fxprune.modes import in_mode, unchanged_buffers

__all__ = ["PACKED", "SIZED", "SymbolicTracer", "failure", "trace_modes"]

_OWN = ("torch.", "fxprune.")

_HINT = (
    "control flow on tensor values or shapes cannot be traced: rewrite that line, move it into a "
    "function marked with torch.fx.wrap, or pass a torch.fx.GraphModule that you traced yourself"
)

PACKED = (
    "a packed sequence has no graph, because its sizes depend on the lengths: give the recurrent "
    "layer the padded tensor and mask what lies behind each length afterwards (of one direction, "
    "outputs at valid steps are the same), or keep the packing outside of the model that you give"
)
"""What to do about `torch.nn.utils.rnn`."""

SIZED = (nn.Unflatten, nn.ChannelShuffle, nn.ConstantPad3d)
"""Modules of torch that hold sizes of the channel axis: calls in a graph can be rewritten."""


class SymbolicTracer(fx.Tracer):
    """Tracer that keeps torch's modules, StochasticDepth and its like as leaves.

    Every node's ``meta["fxprune_source"]`` is the ``file:line`` of the user's forward that made it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._named: nn.Module | None = None
        self._places: dict[int, tuple[str, str, Mapping[str, Any]]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep torch's own modules whole, and small ones that branch on `training` themselves."""
        if isinstance(m, SIZED):
            return False
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if super().is_leaf_module(m, module_qualified_name):
            return True
        childless = next(m.children(), None) is None and next(m.parameters(), None) is None
        code = getattr(type(m).forward, "__code__", None)
        return childless and code is not None and "training" in code.co_names

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Give traced tensors, without torch.fx's search of the whole model for each."""
        traced = self.proxy_buffer_attributes or isinstance(attr_val, nn.Parameter)
        name = self._tensor_name(attr_val) if traced else None
        if name is None:
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def _tensor_name(self, value: Any) -> str | None:
        """Return the first name of a parameter or buffer, or None if it was none from the start."""
        if not isinstance(value, Tensor):
            return None
        if self._named is not self.root:
            self._named = self.root
            self._places = _places(self.root)
        path, leaf, held = self._places.get(id(value), ("", "", {}))
        # a forward may replace its tensors; getattr would be traced here
        return f"{path}{leaf}" if held.get(leaf) is value else None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Give a traced value that user code can ask what it is."""
        return TensorProxy(node, self)

    def keep_function(self, cls: type, args: Any) -> Any:
        """Make a call of an own `torch.autograd.Function` a node."""
        return call_of_function(self, cls, args)

    def create_arg(self, a: Any) -> Any:
        """Keep dicts of other kinds: torch.fx would make them plain dicts."""
        name = self._tensor_name(a)
        if name is not None:
            return self.create_node("get_attr", name, (), {})
        if type(a) is OrderedDict:
            items = [
                (key, super(SymbolicTracer, self).create_arg(value)) for key, value in a.items()
            ]
            return self.create_node("call_function", OrderedDict, (items,), {})
        if is_dataclass(a) and issubclass(type(a), dict):  # as Hugging Face's outputs are
            given = {field.name: self.create_arg(getattr(a, field.name)) for field in fields(a)}
            return self.create_node("call_function", type(a), (), given)
        return super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Create a node and note the user's line."""
        node = super().create_node(*args, **kwargs)
        line = _user_line(sys._getframe(1))
        if line:
            node.meta["fxprune_source"] = line
        return node


def _places(root: nn.Module) -> dict[int, tuple[str, str, Mapping[str, Any]]]:
    """Return by ``id`` of a parameter or buffer: its module's path, its name, and what holds it."""
    found: dict[int, tuple[str, str, Mapping[str, Any]]] = {}
    for path, module in root.named_modules():
        for held in (module._parameters, module._buffers):
            for leaf, tensor in held.items():
                if tensor is not None:
                    found.setdefault(id(tensor), (f"{path}." if path else "", leaf, held))
    return found


def _user_line(frame: FrameType | None) -> str:
    """Return ``file:line`` of the innermost frame that is neither torch's nor ours."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(_OWN) and module != "torch":
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def trace_modes(model: nn.Module, given: int | None, names: frozenset[str]) -> dict[str, fx.Graph]:
    """Trace a model in both modes.

    Parameters
    ----------
    model : nn.Module
        Left in the modes it had; norms that are traced through become plain modules.
    given : int or None
        Number of positional example inputs; None when they are not known.
    names : frozenset of str
        Names of keyword example inputs.

    Returns
    -------
    dict
        ``{"eval": graph}``, and ``"train"`` as well where its graph differs.

    Raises
    ------
    CaptureError
        If the forward cannot be traced; names the line of the user's code.
    """
    concrete = _defaults(model, given, names)
    with unchanged_buffers(model):  # they are real tensors while it is traced
        return capture_modes(model, partial(_trace, model, concrete))


def _trace(model: nn.Module, concrete: Mapping[str, Any], training: bool) -> fx.Graph:
    try:
        with (
            in_mode(model, training),
            answered_types(model),
            traced_factories(),
            kept_gradients(),
            no_draws(),
        ):
            graph = SymbolicTracer().trace(model, concrete_args=dict(concrete) or None)
    except Exception as error:
        raise failure(model, error) from error
    forget_tracer(graph)
    for node in graph.nodes:
        if node.op == "placeholder" and node.name.removesuffix("_1") in concrete:
            node.target = node.name.removesuffix("_1")  # torch.fx numbers arguments it specialised
    _make_checks_plain(graph)
    return graph


def _make_checks_plain(graph: fx.Graph) -> None:
    """Write torch.fx's check that an argument stays None as a comparison.

    Its own form cannot be unpickled: tracing then fails for the rest of the process.
    """
    for node in list(graph.nodes):
        if getattr(node.target, "__name__", "") == "_assert_is_none":
            value, message = node.args
            with graph.inserting_before(node):
                same = graph.call_function(operator.eq, (value, None))
                graph.call_function(torch._assert, (same, message))
            graph.erase_node(node)


def _defaults(model: nn.Module, given: int | None, names: frozenset[str]) -> dict[str, Any]:
    """Return the arguments of forward that have a default and are not among the example inputs."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return {}
    concrete = {}
    for position, parameter in enumerate(parameters):
        plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        passed = parameter.name in names or (given is not None and position < given)
        if plain and not passed and parameter.default is not parameter.empty:
            concrete[parameter.name] = parameter.default
    return concrete


def failure(model: nn.Module, error: Exception, way: str = "symbolic tracing") -> CaptureError:
    """Return the error that tells why a model could not be captured, and by which of its lines."""
    where, line = raised_at(error)
    return CaptureError(
        f"{type(model).__name__} cannot be captured as a graph by {way}: "
        f"{type(error).__name__}: {_first_lines(error)}",
        where=where,
        seen=line,
        hint=PACKED if _packs(error) else _HINT,
    )


def _packs(error: Exception) -> bool:
    """Return whether torch failed to pack or pad sequences of several lengths."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename == torch.nn.utils.rnn.__file__ for frame in frames)


def _first_lines(error: Exception) -> str:
    """Return what an error says, without the advice that torch.export puts behind it."""
    paragraphs = re.split(
        r"\n\s*\n|For more information|\(Size-like|Potential framework", str(error)
    )
    return " ".join(paragraphs[0].split())
