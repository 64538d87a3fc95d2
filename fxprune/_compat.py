"""Every use of torch that is not plainly public API, in one place."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import flop_registry

__all__ = [
    "DispatchMode",
    "GradRegion",
    "OpOverload",
    "count_flops",
    "forget_tracer",
    "grad_mode_region",
    "guard_function",
    "is_mutable",
    "is_pointwise",
    "is_view",
    "no_attention_fastpath",
    "no_torch_modes",
    "quiet_export",
    "storage_key",
    "op_name",
    "operator_by_name",
    "operator_name",
    "program_arguments",
    "program_trees",
    "written_arguments",
]

DispatchMode = TorchDispatchMode


def forget_tracer(graph: fx.Graph) -> None:
    """Make a graph not name the tracer that made it, so that unpickling it needs no fxprune."""
    graph._tracer_cls = None


def count_flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return what `torch.utils.flop_counter.FlopCounterMode` counts for one operator."""
    formula = flop_registry.get(func.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def storage_key(tensor: torch.Tensor) -> int:
    """Return a number that tensors over the same memory share, on the meta device too."""
    return int(tensor.untyped_storage()._cdata)


def op_name(func: Any) -> str:
    """Return the operator's name without its overload, such as ``aten::add``."""
    return str(func.name()).partition(".")[0]


def is_mutable(func: Any) -> bool:
    """Return whether the operator writes to one of its arguments."""
    return bool(func._schema.is_mutable)


def written_arguments(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the arguments that an operator writes to."""
    return [
        kwargs.get(argument.name, args[at] if at < len(args) else None)
        for at, argument in _written(func)
    ]


@functools.cache
def _written(func: Any) -> list[tuple[int, Any]]:
    arguments = enumerate(func._schema.arguments)
    return [(n, a) for n, a in arguments if a.alias_info is not None and a.alias_info.is_write]


@functools.cache
def is_pointwise(name: str) -> bool:
    """Return whether ATen tags an operator, or its out-of-place twin, as pointwise."""
    namespace, _, operator = name.partition("::")
    for twin in (operator, operator.removesuffix("_")):
        packet = getattr(getattr(torch.ops, namespace), twin, None)
        if packet is not None and any(
            torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads()
        ):
            return True
    return False


def is_view(func: Any) -> bool:
    """Return whether the operator's result is a view of an argument."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


@contextlib.contextmanager
def quiet_export() -> Iterator[None]:
    """Keep torch.export from printing pages about a model it cannot follow; its error tells why.

    Nor does it warn: where warnings are errors, it would fail for another reason than the true one.
    """
    log = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = log.level
    log.setLevel(logging.ERROR)
    pages = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(pages),
            contextlib.redirect_stderr(pages),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def no_torch_modes() -> Iterator[None]:
    """Run code as if no mode that watches torch's functions and operators were active."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


@contextlib.contextmanager
def no_attention_fastpath() -> Iterator[None]:
    """Keep ``nn.MultiheadAttention`` from taking its fused path, which hides its projections."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def guard_function(module: nn.Module) -> Callable[..., Any] | None:
    """Return the function by which an exported module checks its flat inputs, if it has one."""
    guards = getattr(module, "_guards_fn", None)
    return None if guards is None else guards.forward


@dataclass(frozen=True, slots=True)
class GradRegion:
    """A part of an exported program that runs under another gradient or autocast mode.

    Attributes
    ----------
    arguments : int
        How many arguments describe the mode, before the body and what it is called with.
    """

    arguments: int

    def take(self, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """Return the body and its inputs."""
        return args[self.arguments], args[self.arguments + 1 :]

    def detaches(self, args: tuple[Any, ...]) -> bool:
        """Return whether no gradient leaves the region."""
        return self.arguments == 1 and not args[0]

    def casts(self, args: tuple[Any, ...]) -> bool:
        """Return whether operators in the region compute in another precision."""
        return self.arguments == 4 and bool(args[2])


def grad_mode_region(target: Any) -> GradRegion | None:
    """Return how to read a call of a region of another mode, or None for any other target.

    Raises
    ------
    ValueError
        If the target is control flow on values.
    """
    if not isinstance(target, HigherOrderOperator):
        return None
    name = str(target.name())  # type: ignore[no-untyped-call]
    arguments = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}.get(name)
    if arguments is None:
        raise ValueError(f"{name} is control flow on values")
    return GradRegion(arguments)


def program_trees(program: ExportedProgram, leaf: Callable[[int], Any]) -> tuple[Any, Any]:
    """Return ``(args, kwargs)`` and the output of an exported program, with numbered leaves."""
    specs = program.call_spec.in_spec, program.call_spec.out_spec
    taken, returned = (
        pytree.tree_unflatten([leaf(i) for i in range(spec.num_leaves)], spec) for spec in specs
    )
    return taken, returned


def program_arguments(program: ExportedProgram) -> list[str]:
    """Return the names of the arguments that an exported program takes, if it knows them."""
    signature = program.module_call_graph[0].signature
    return list(signature.forward_arg_names or ()) if signature is not None else []


def operator_by_name(name: str) -> Any:
    """Return the operator called ``aten.view`` or, for one overload, ``aten.view.default``."""
    return functools.reduce(getattr, name.split("."), torch.ops)


def operator_name(target: Any) -> str | None:
    """Return the name by which `operator_by_name` finds an operator; None for anything else."""
    return str(target) if isinstance(target, (OpOverload, OpOverloadPacket)) else None
