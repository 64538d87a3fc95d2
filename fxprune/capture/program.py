"""A user's own `torch.export.ExportedProgram` as a plain graph module."""

from __future__ import annotations

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune._compat import program_arguments, program_trees
from fxprune.capture.interface import Interface
from fxprune.capture.transcribe import transcribe
from fxprune.capture.trees import Leaf, describe

__all__ = ["module_of"]


def module_of(program: ExportedProgram) -> fx.GraphModule:
    """Return a graph module, with tensors of its own, that computes what an exported program does.

    What the program was exported in (the mode, conditions on sizes) stays as it is.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        Never changed.

    Raises
    ------
    CaptureError
        If it has control flow on tensor values.
    """
    root = nn.Module()
    _add_state(root, program)
    module = fx.GraphModule(root, transcribe(program, root, _interface(program))).eval()
    known = dict(module.named_buffers())
    fleeting = [n for n in module._buffers if n.startswith("_tensor_constant")]
    for name in (*program.graph_signature.non_persistent_buffers, *fleeting):
        owner, _, leaf = name.rpartition(".")
        if name in known:
            module.get_submodule(owner)._non_persistent_buffers_set.add(leaf)
    return module


def _add_state(root: nn.Module, program: ExportedProgram) -> None:
    """Give `root` copies of the program's parameters and buffers under their names."""
    copies: dict[int, Tensor] = {}
    for name, tensor in (*program.named_parameters(), *program.named_buffers()):
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.detach().clone()
            if isinstance(tensor, nn.Parameter):
                copies[id(tensor)] = nn.Parameter(copies[id(tensor)], tensor.requires_grad)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, copies[id(tensor)])  # type: ignore[arg-type]
        else:
            owner.register_buffer(leaf, copies[id(tensor)])


def _interface(program: ExportedProgram) -> Interface:
    """Return what a program takes and returns; arguments without a name are numbered."""
    taken, returned = (
        describe(nested, lambda value: isinstance(value, Leaf), [])
        for nested in program_trees(program, Leaf)
    )
    positional, keywords = taken.items
    names = list(program_arguments(program))[: len(positional.items)]
    names += [f"input_{i}" for i in range(len(names), len(positional.items))]
    named = (
        *zip(names, positional.items, strict=True),
        *zip(keywords.keys, keywords.items, strict=True),
    )
    return Interface(named, returned)
