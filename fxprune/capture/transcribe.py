"""Write an exported program as a plain graph over the modules and tensors of a model."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune._compat import GradRegion, OpOverload, grad_mode_region, guard_function, op_name
from fxprune._graphs import fetch
from fxprune.capture.aten import spell
from fxprune.capture.interface import Interface, add_placeholders
from fxprune.capture.leaves import LeafCall, leaf_calls
from fxprune.capture.lines import is_users
from fxprune.capture.lookups import drop_unread
from fxprune.capture.trees import build
from fxprune.errors import CaptureError

__all__ = ["constant_name", "transcribe"]

_CHECKS = (
    "aten::_assert_tensor_metadata",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in')


def transcribe(
    program: ExportedProgram, root: nn.Module, interface: Interface, prefix: str = ""
) -> fx.Graph:
    """Return the graph of an exported program, written with torch's functions and `root`'s modules.

    Parameters
    ----------
    program : ExportedProgram
    root : nn.Module
        Has the parameters and buffers that the program names, after `prefix`. Constants are
        registered on it as buffers that are not part of its state. Calls of its leaf modules in
        `training` mode come back.
    interface : Interface
    prefix : str
    """
    return _Transcription(program, root, interface, prefix).run()


class _Transcription:
    def __init__(
        self, program: ExportedProgram, root: nn.Module, interface: Interface, prefix: str
    ) -> None:
        self.module = program.module()
        self.root = root
        self.interface = interface
        self.prefix = prefix
        self.graph = fx.Graph()
        self.device: fx.Node | None = None
        self.state: dict[str, Tensor] = {
            **dict(root.named_parameters(remove_duplicate=False)),
            **dict(root.named_buffers(remove_duplicate=False)),
        }

    def run(self) -> fx.Graph:
        leaves = add_placeholders(self.graph, self.interface.inputs)
        placeholders = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        self._guards(leaves)
        if leaves:
            self.device = self.graph.call_function(getattr, (leaves[0], "device"))
        outputs = self._copy(self.module, dict(zip(placeholders, leaves, strict=True)))
        self.graph.output(build(self.graph, self.interface.outputs, outputs))
        drop_unread(self.graph)
        self.graph.lint()
        return self.graph

    # -- inputs
    def _guards(self, leaves: Sequence[fx.Node]) -> None:
        """Write down what the forward took for granted about the sizes of its inputs."""
        check = guard_function(self.module)
        if check is None:
            return
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        try:
            check(*(fx.Proxy(leaf, tracer) for leaf in leaves))
        except Exception as error:
            raise CaptureError(
                "the forward relies on conditions on its input sizes that no graph can check",
                seen=f"{type(error).__name__}: {error}",
            ) from error
        for node in self.graph.nodes:
            if node.target is torch._assert and str(node.args[1]).startswith("Guard failed"):
                what = re.sub(r"tensors_(\d+)", lambda m: leaves[int(m[1])].name, node.args[1])
                what = what.replace("Guard failed: ", "captured for inputs with ")
                node.args = (node.args[0], what)

    # -- nodes
    def _copy(self, owner: nn.Module, env: dict[fx.Node, Any]) -> Any:
        """Copy the graph of a module; return what it returns, as nodes."""
        graph: fx.Graph = owner.graph  # type: ignore[assignment]
        calls = leaf_calls(graph, self.root, self.prefix)
        inside = {node: call for call in calls for node in call.nodes}
        for node in graph.nodes:
            if node.op == "output":
                return fx.map_arg(node.args[0], env.__getitem__)
            if node in inside:
                self._call_leaf(node, inside[node], env)
            elif node.op == "get_attr":
                env[node] = self._attribute(node, owner)
            elif node.op == "call_function":
                env[node] = self._call(node, owner, env)
        return None

    def _call_leaf(self, node: fx.Node, call: LeafCall, env: dict[fx.Node, Any]) -> None:
        if node is call.result:
            made = self.graph.create_node(
                "call_module", call.path, (env[call.source],), name=node.name
            )
            env[node] = self._annotated(made, node)

    def _attribute(self, node: fx.Node, owner: nn.Module) -> Any:
        value = fetch(owner, str(node.target))
        if not isinstance(value, Tensor):
            return value
        name = str(node.target).removeprefix(self.prefix)
        known = self.state.get(name)
        if known is None or known.shape != value.shape:
            name = constant_name(self.root, value)
        return self.graph.create_node("get_attr", name, name=node.name)

    def _call(self, node: fx.Node, owner: nn.Module, env: dict[fx.Node, Any]) -> Any:
        args = fx.map_arg(tuple(node.args), env.__getitem__)
        kwargs = fx.map_arg(dict(node.kwargs), env.__getitem__)
        try:
            region = grad_mode_region(node.target)
        except ValueError as error:
            raise CaptureError(
                f"the forward has {error}, of which a graph has no single form",
                where=_source(node.meta.get("stack_trace") or ""),
            ) from error
        if region is not None and region.casts(args):
            raise CaptureError(
                "the forward switches autocast on, and a graph has no such region",
                where=_source(node.meta.get("stack_trace") or ""),
                hint="switch autocast on around the whole model instead",
            )
        if region is not None:
            return self._region(region, args)
        target: Any = node.target
        if target is operator.getitem and isinstance(args[0], (tuple, list)):
            place: Any = args[1]
            return args[0][place]
        name = op_name(target) if isinstance(target, OpOverload) else ""
        if name in _CHECKS:
            return None
        if name == "aten::_assert_scalar":
            target = torch._assert
        if name == "aten::slice" and len(args) == 4 and args[2:] == (0, 2**63 - 1):
            return args[0]  # all of it
        first = (
            node.args[0].meta.get("val")
            if node.args and isinstance(node.args[0], fx.Node)
            else None
        )
        rank = first.dim() if isinstance(first, Tensor) else 0
        op, target, args, kwargs = spell(target, *self._placed(args, kwargs), rank)
        made = self.graph.create_node(op, target, args, kwargs, name=node.name)
        return self._annotated(made, node)

    def _region(self, region: GradRegion, args: tuple[Any, ...]) -> Any:
        """Write the body of a region in place; out of a region without gradients comes none."""
        body, given = region.take(args)
        inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
        outputs = self._copy(body, dict(zip(inputs, given, strict=True)))
        if region.detaches(args):
            return fx.map_arg(outputs, lambda n: self.graph.call_method("detach", (n,)))
        return outputs

    def _placed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Write the device of the input in place of the one the program was exported on."""

        def place(value: Any) -> Any:
            if isinstance(value, torch.device) and self.device is not None:
                return self.device
            return value

        return tuple(place(a) for a in args), {k: place(v) for k, v in kwargs.items()}

    def _annotated(self, made: fx.Node, node: fx.Node) -> fx.Node:
        source = _source(node.meta.get("stack_trace") or "")
        if source:
            made.meta["fxprune_source"] = source
        stack = node.meta.get("nn_module_stack")
        if stack:
            made.meta["nn_module_stack"] = {
                key: (str(path).removeprefix(self.prefix.rstrip(".")).lstrip("."), kind)
                for key, (path, kind) in stack.items()
            }
        return made


def constant_name(root: nn.Module, value: Tensor) -> str:
    """Register a tensor that is no state of the model, or find the same one; return its name."""
    number = 0
    while (known := root._buffers.get(f"_tensor_constant{number}")) is not None:
        if known.dtype == value.dtype and torch.equal(known, value):
            return f"_tensor_constant{number}"
        number += 1
    root.register_buffer(f"_tensor_constant{number}", value.detach().clone(), persistent=False)
    return f"_tensor_constant{number}"


def _source(trace: str) -> str:
    """Return ``file:line`` of the innermost frame that is not torch's own."""
    found = ""
    for file, line in _FRAME.findall(trace):
        if is_users(file):
            found = f"{file}:{line}"
    return found
