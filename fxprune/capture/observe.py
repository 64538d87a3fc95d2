"""Run a model once and see what passes between its captured regions and its Python code.

The run is in evaluation mode, on a copy of the model. What it shows decides which channels may be
pruned across a border, and what is counted as cost. The equality of gated and compact model does
not rest on it: at a border, a tensor has its full width in both (see `passes.fit_borders`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._compat import DispatchMode, count_flops, no_attention_fastpath, storage_key
from fxprune.borders import Borders, Leaf, MisfitError, RegionCall
from fxprune.capture.lines import raised_at
from fxprune.errors import InputError
from fxprune.inputs import Inputs, fit_inputs, iter_leaves, map_tensors

__all__ = ["observe"]

_SIZES = frozenset(
    "in_channels out_channels num_features num_channels num_groups groups in_features out_features "
    "normalized_shape embedding_dim num_embeddings embed_dim num_heads head_dim hidden_size "
    "input_size num_parameters".split()
)
"""Names under which modules keep a number of channels."""


def observe(model: nn.Module, inputs: Inputs, regions: Collection[str]) -> Borders:
    """Run a model once in evaluation mode and note how its regions are used.

    Parameters
    ----------
    model : nn.Module
        Not changed; the run is on a copy.
    inputs : tuple (args, kwargs)
        Example inputs with values.
    regions : collection of str
        Paths of the regions.

    Raises
    ------
    MisfitError
        If a region is called with anything but tensors, returns anything else, or has a part that
        is called without it.
    InputError
        If the model does not run on the inputs.
    """
    probe = copy.deepcopy(model).eval()
    args, kwargs = map_tensors(fit_inputs(probe, inputs), lambda t: t.detach().clone())
    watch = _Watch(probe, regions)
    devices = sorted({p.device.index for p in probe.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), no_attention_fastpath():
            torch.manual_seed(0)
            with watch:
                result = probe(*args, **kwargs)
    except MisfitError:
        raise
    except Exception as error:
        shapes = ", ".join(
            str(tuple(t.shape)) for _, t in iter_leaves((args, kwargs)) if isinstance(t, Tensor)
        )
        raise InputError(
            f"the model does not run on these example inputs: {type(error).__name__}: {error}",
            where=raised_at(error)[0] or type(model).__name__,
            seen=f"{len(args) + len(kwargs)} arguments with tensors of shape {shapes}",
            hint="pass example_inputs as a tuple of the forward's arguments; a list that is one "
            "argument goes inside: ([image],)",
        ) from error
    for tensor in _tensors(result):
        watch.use(tensor, "it is an output of the model")
    return watch.borders()


class _Watch(DispatchMode):  # type: ignore[no-untyped-call]
    """Notes the calls of regions, and every operator that runs outside of them."""

    def __init__(self, model: nn.Module, regions: Collection[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inside = 0
        self._flops = 0
        self._calls: dict[Any, tuple[Inputs, int]] = {}
        self._read: dict[Leaf, str] = {}
        self._used: dict[str, str] = {}
        self._made: dict[int, Leaf] = {}
        self._memory: dict[int, list[Leaf]] = {}
        self._alive: list[Tensor] = []
        self._stored: dict[int, str] = {}
        self._names = {id(t): n for n, t in (*model.named_parameters(), *model.named_buffers())}
        for path in regions:
            self._watch(path, model.get_submodule(path))
        roots = {id(model.get_submodule(path)) for path in regions}
        inner = {id(m): (m, path) for path in regions for m in model.get_submodule(path).modules()}
        for module, path in inner.values():
            self._guard(module, path, id(module) in roots)

    # -- setting up
    def _watch(self, path: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(self._entering(path), with_kwargs=True, prepend=True)
        module.register_forward_hook(self._leaving(path))
        for inner in module.modules():
            if inner is not module:
                inner.register_forward_pre_hook(self._alone(path))

    def _guard(self, module: nn.Module, path: str, is_root: bool) -> None:
        """Note when Python code outside of the regions reads a tensor of a region.

        Of a region itself it may read sizes: they keep their value. What it reads of a module
        inside makes that module a region of its own.
        """
        own = {**module._parameters, **module._buffers}
        names = [self._names[id(t)] for t in own.values() if t is not None]
        if not names:
            return
        self._stored.update(
            {storage_key(t): self._names[id(t)] for t in own.values() if t is not None}
        )
        watch, kind = self, type(module)
        seen = frozenset(own) if is_root else frozenset(own) | _SIZES

        def read(self: Any, name: str) -> Any:
            if name in seen and not watch._inside:
                if not is_root:
                    raise MisfitError(path, f"the Python code reads '{name}' of a part of it")
                why = f"the Python code around the regions reads its '{name}'"
                watch._used.update({n: why for n in names if n not in watch._used})
            return super(guarded, self).__getattribute__(name)

        guarded: Any = type(kind.__name__, (kind,), {"__getattribute__": read})
        guarded.__module__ = kind.__module__
        module.__class__ = guarded

    # -- calls
    def _entering(self, path: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self._inside:
                self._note_call(path, (args, kwargs))
            self._inside += 1

        return enter

    def _leaving(self, path: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, result: Any) -> None:
            self._inside -= 1
            if not self._inside:
                self._note_result(path, result)

        return leave

    def _alone(self, path: str) -> Callable[..., None]:
        def called(module: nn.Module, args: Any) -> None:
            if not self._inside:
                raise MisfitError(path, "the Python code calls a part of it")

        return called

    def _note_call(self, path: str, given: Inputs) -> None:
        leaves = [leaf for _, leaf in iter_leaves(given)]
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise MisfitError(path, "it is called with something else than tensors")
        sources = tuple(self._made.get(id(leaf)) for leaf in leaves)
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in iter_leaves(given))
        key = path, shapes, sources
        meta: Inputs = map_tensors(given, _shape_only)
        self._calls[key] = meta, self._calls.get(key, (None, 0))[1] + 1

    def _note_result(self, path: str, result: Any) -> None:
        leaves = [leaf for _, leaf in iter_leaves(result) if leaf is not None]
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise MisfitError(path, "it returns something else than tensors")
        for place, tensor in enumerate(leaves):
            leaf = path, place
            self._alive.append(tensor)
            owners = self._memory.setdefault(storage_key(tensor), [])
            if any(owner != leaf for owner in owners):
                for shared in (*owners, leaf):
                    self._read.setdefault(shared, "another result lies in the same memory")
            owners.append(leaf)
            self._made[id(tensor)] = leaf

    # -- everything else
    def use(self, tensor: Tensor, why: str) -> None:
        """Note that something outside of the regions uses a tensor."""
        memory = storage_key(tensor)
        for leaf in self._memory.get(memory, ()):
            self._read.setdefault(leaf, why)
        if memory in self._stored:
            self._used.setdefault(self._stored[memory], why)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        out = func(*args, **kwargs)
        if not self._inside:
            why = f"the Python code around the regions uses it ({str(func).partition('.')[2]})"
            for tensor in _tensors((args, kwargs)):
                self.use(tensor, why)
            self._flops += count_flops(func, args, kwargs, out)
        return out

    def borders(self) -> Borders:
        """Return what was seen."""
        calls = tuple(
            RegionCall(path, meta, sources, count)
            for (path, _, sources), (meta, count) in self._calls.items()
        )
        taken = {source for call in calls for source in call.sources}
        for leaf in self._made.values():
            if leaf not in taken:
                self._read.setdefault(leaf, "no other region takes it")
        return Borders(calls, self._read, self._used, self._flops // 2)


def _shape_only(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for _, leaf in iter_leaves(value) if isinstance(leaf, Tensor)]
