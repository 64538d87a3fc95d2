"""The operators that a forward runs, compared without computing anything.

Run on meta tensors, a model and its graph cost the same whatever their size. Where both run the
same operators on the same tensors with the same numbers, in the same order, they compute the same:
also in training mode, and where they draw random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune._compat import (
    DispatchMode,
    no_attention_fastpath,
    op_name,
    storage_key,
    written_arguments,
)
from fxprune.analysis.layouts import run_remembering
from fxprune.analysis.op import flat_tensors
from fxprune.inputs import Inputs, batch_size, iter_leaves, map_leaves, map_tensors
from fxprune.modes import in_mode

__all__ = ["same_operations"]

_NOTHING = ("aten::detach", "aten::alias", "aten::lift_fresh")
"""Operators that give the tensor they are given."""

_META = torch.device("meta")

_SMALL = 4096
"""Elements of a constant that are compared one by one."""

_Steps = list[tuple[Any, ...]]


def same_operations(
    model: nn.Module, root: nn.Module, graph: fx.Graph, inputs: Inputs, training: bool
) -> bool:
    """Return whether a model and its graph run the same operators.

    Parameters
    ----------
    model : nn.Module
        Shares its tensors with `root`. Both are as they were afterwards.
    root : nn.Module
        Holds what the graph names.
    graph : fx.Graph
    inputs : tuple (args, kwargs)
        Only shapes and dtypes are used; a batch of one becomes two in training mode.
    training : bool
        The mode to compare in.

    Returns
    -------
    bool
        False as well where it cannot be told so: a forward that does not run without values.
    """
    tensors = _Twins()
    given = _on_meta(inputs, training)
    try:
        expected = _steps(model, None, tensors, given, training)
        return expected == _steps(root, graph, tensors, given, training)
    except Exception:  # noqa: BLE001  # a forward may raise anything when its tensors have no values
        return False


def _on_meta(inputs: Inputs, training: bool) -> Inputs:
    batch = batch_size(inputs) if training else None

    def twin(tensor: Tensor) -> Tensor:
        if batch == 1 and tensor.shape[:1] == (1,):  # BatchNorm refuses one value per channel
            return torch.empty((2, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
        return torch.empty_like(tensor, device="meta")

    made: Inputs = map_tensors(inputs, twin)
    return made


def _steps(
    root: nn.Module, graph: fx.Graph | None, tensors: _Twins, inputs: Inputs, training: bool
) -> _Steps:
    """Return what the forward of a module runs, or a graph over it, and what that returns."""
    args, kwargs = map_tensors(inputs, lambda t: t.detach())
    leaves = [leaf for _, leaf in iter_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    with in_mode(root, training), tensors.inside(root), no_attention_fastpath():
        module = root if graph is None else fx.GraphModule(root, graph)
        tape = _Tape(tensors.made, leaves)
        with torch.enable_grad(), tape:
            result = module(*args, **kwargs)
    out = [(path, tape.describe(leaf)) for path, leaf in iter_leaves(result)]
    return [*tape.steps, ("output", out)]


class _Twins:
    """Meta tensors in the place of a module's own."""

    def __init__(self) -> None:
        self.made: list[Tensor] = []
        self._by_key: dict[Any, Tensor] = {}
        self._alive: list[Tensor] = []

    def of(self, tensor: Tensor, key: Any) -> Tensor:
        """Return the twin that goes by a key."""
        if key not in self._by_key:
            twin = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
            if isinstance(tensor, nn.Parameter):
                twin = nn.Parameter(twin, tensor.requires_grad)
            self._by_key[key] = twin
            self._alive.append(tensor)
            self.made.append(twin)
        return self._by_key[key]

    @contextmanager
    def inside(self, root: nn.Module) -> Iterator[None]:
        """Put the twins into a module; give it its own tensors and attributes back afterwards."""
        own = {id(t) for t in (*root.parameters(), *root.buffers())}

        def twin(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return self.of(value, id(value) if id(value) in own else _content(value))

        modules = list(root.modules())
        before = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in modules]
        try:
            for module in modules:
                for store in (module._parameters, module._buffers):
                    store.update({name: twin(held) for name, held in store.items()})
                for name, held in list(vars(module).items()):
                    if isinstance(held, (Tensor, list, tuple)):  # torch's LSTM lists its weights
                        vars(module)[name] = map_leaves(held, twin)
            yield
        finally:
            for module, attributes, parameters, buffers in before:
                vars(module).clear()
                vars(module).update(attributes)
                module._parameters.clear()
                module._parameters.update(parameters)
                module._buffers.clear()
                module._buffers.update(buffers)


def _content(tensor: Tensor) -> Any:
    """Return a key for a constant: its value, or itself where that is long."""
    if tensor.is_meta or tensor.numel() > _SMALL:
        return id(tensor)
    return str(tensor.dtype), tuple(tensor.shape), str(tensor.tolist())


class _Tape(DispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator, and its tensors by where they are from.

    What writes into a tensor counts as what computes it anew: a trace makes ``x + y`` of
    ``x += y``.
    Whoever reads that memory afterwards in another way reads something else than before.
    """

    def __init__(self, own: list[Tensor], inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: _Steps = []
        self._alive: list[Tensor] = []
        self._labels: dict[int, tuple[Any, int]] = {}
        self._written: dict[int, int] = {}
        for kind, tensors in (("own", own), ("input", inputs)):
            for number, tensor in enumerate(tensors):
                self._keep(tensor, (kind, number))

    def label(self, tensor: Tensor) -> Any:
        """Return where a tensor is from, or the value of one that is no operator's result."""
        if id(tensor) in self._labels:
            label, written = self._labels[id(tensor)]
            now = self._written.get(storage_key(tensor), 0)
            return label if now == written else (label, now)
        if tensor.is_meta or tensor.numel() > _SMALL:
            raise ValueError("a tensor of unknown values")
        return _content(tensor)

    def describe(self, value: Any) -> Any:
        """Return an argument or result with labels for its tensors."""
        if isinstance(value, Tensor):
            return self.label(value)
        if isinstance(value, (list, tuple)):
            return [self.describe(item) for item in value]
        if isinstance(value, Mapping):
            return {key: self.describe(item) for key, item in value.items()}
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = _META
        name = op_name(func)
        if name in _NOTHING:
            out = func(*args, **kwargs)
            self._keep(out, self.label(args[0]))
            return out
        step = [name.removesuffix("_"), func._overloadname, self.describe((args, kwargs))]
        out = run_remembering(func, args, kwargs)
        written = flat_tensors(written_arguments(func, args, kwargs))
        for key in {storage_key(tensor) for tensor in written}:
            self._written[key] = self._written.get(key, 0) + 1
        made = [*written, *(t for t in flat_tensors([out]) if all(t is not w for w in written))]
        step.append([(t.dtype, t.shape) for t in made])
        for number, tensor in enumerate(made):
            self._keep(tensor, (len(self.steps), number))
        self.steps.append(tuple(step))
        return out

    def _keep(self, tensor: Tensor, label: Any) -> None:
        self._labels[id(tensor)] = label, self._written.get(storage_key(tensor), 0)
        self._alive.append(tensor)
