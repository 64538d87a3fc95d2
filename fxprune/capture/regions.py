"""Capture by regions: the largest parts of a model that can be captured, where the whole cannot.

A model whose forward depends on data (a detector: proposals, matching, non-maximum suppression)
stays Python. Walking its module tree from the root, every submodule that can be captured becomes a
region; of one that cannot, the children are tried. One run of the model then shows whether the
Python code calls the regions as such.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import fx, nn

from fxprune._copies import own_functions, share_tensors
from fxprune.borders import Borders, MisfitError, RegionCall, region_key, split_key
from fxprune.capture import Captured, trace
from fxprune.capture.both_modes import drop_same
from fxprune.capture.observe import observe
from fxprune.capture.open_calls import open_calls
from fxprune.errors import CaptureError
from fxprune.inputs import Inputs

__all__ = ["Regions", "find_regions", "known_regions", "places"]


class Regions:
    """The captured regions of one model.

    Parameters
    ----------
    model : nn.Module
        A private copy. A captured part takes its place in it where it is another module.

    Attributes
    ----------
    graphs : dict of str to fx.Graph
        Graphs over the whole model's names, by `region_key`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.graphs: dict[str, fx.Graph] = {}
        self._replaced: dict[str, nn.Module] = {}
        self._unchecked: dict[str, Captured] = {}
        self._form: dict[str, tuple[int, frozenset[str]]] = {}

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the regions are."""
        return tuple(dict.fromkeys(split_key(key)[0] for key in self.graphs))

    def try_below(self, path: str) -> None:
        """Make regions of the children of a module, or of their children."""
        for name, child in self.model.get_submodule(path).named_children():
            self._try(f"{path}.{name}" if path else name, child)

    def give_up(self, path: str) -> None:
        """Give up a region and try its children."""
        self.drop(path)
        self.try_below(path)

    def drop(self, path: str) -> None:
        """Give up a region."""
        self.restore(path)
        self.graphs = {k: g for k, g in self.graphs.items() if split_key(k)[0] != path}

    def _try(self, path: str, module: nn.Module) -> None:
        if next(module.parameters(), None) is None or self._is_known(module):
            return
        if not self.add(path):
            self.try_below(path)

    def _is_known(self, module: nn.Module) -> bool:
        return any(self.model.get_submodule(path) is module for path in self.paths)

    def add(self, path: str, call: RegionCall | None = None) -> bool:
        """Capture a module as a region, for calls of one form; return whether that worked."""
        module = self.model.get_submodule(path)
        if isinstance(module, torch.jit.ScriptModule):
            return False
        plain = type(module).forward is not nn.Module.forward
        if not plain or module._forward_hooks or module._forward_pre_hooks:
            return False
        given, names = (None, frozenset[str]()) if call is None else _form(call)
        # a forward may keep what it is given: tracing it leaves its marks on a copy
        scratch, _ = share_tensors(module)
        try:
            captured = trace(scratch, given, names)
        except CaptureError:
            return False
        if captured.root is scratch and not isinstance(scratch, fx.GraphModule):
            self._take_over(scratch, module)
            captured = replace(captured, root=module)
        self._unchecked[path] = captured
        self._install(path, module, captured)
        for mode, graph in captured.graphs.items():
            self.graphs[region_key(path, mode)] = _prefixed(graph, path)
        return True

    def _take_over(self, traced: nn.Module, module: nn.Module) -> None:
        """Give a module what tracing its copy made: constants, and plain modules for others."""
        for name, value in vars(traced).items():
            if name.startswith("_tensor_constant"):
                setattr(module, name, value)
        module.__dict__.update(own_functions(traced))
        for path, old in list(module.named_modules(remove_duplicate=False)):
            new = traced.get_submodule(path)
            if type(new) is not type(old):
                self._put(old, new)

    def _install(self, path: str, module: nn.Module, captured: Captured) -> None:
        """Put what holds a region's modules in its place, as a module of no special kind."""
        root = captured.root
        if root is module and not isinstance(root, fx.GraphModule):
            return
        holder = nn.Module()
        plain = {
            k: v for k, v in module.__dict__.items() if k not in holder.__dict__ and k[0] != "_"
        }
        holder.__dict__.update(plain)
        for store in ("_modules", "_parameters", "_buffers"):
            holder.__dict__[store] = getattr(root, store)
        holder._non_persistent_buffers_set = root._non_persistent_buffers_set
        holder.training = module.training
        whole = fx.GraphModule(root, copy.deepcopy(captured.graphs["eval"]))
        holder.__dict__["forward"] = whole.forward  # for runs of the model until it is gated
        self._replaced[path] = module
        self._put(module, holder)

    def restore(self, path: str) -> None:
        """Put a region's own module back."""
        if path in self._replaced:
            self._put(self.model.get_submodule(path), self._replaced.pop(path))

    def _put(self, old: nn.Module, new: nn.Module) -> None:
        for place, parent in places(self.model, old):
            parent._modules[place] = new

    def settle(self, inputs: Inputs) -> Borders:
        """Run the model until every region is called as such, and return what its borders show.

        Raises
        ------
        InputError
            If the model does not run on the inputs.
        """
        while True:
            try:
                borders = observe(self.model, inputs, self.paths)
                self._check_forms(borders)
                self._check_graphs(borders)
            except MisfitError as misfit:
                self.give_up(misfit.path)
                continue
            for path in set(self.paths) - set(borders.paths):
                self.drop(path)
            return borders

    def _check_forms(self, borders: Borders) -> None:
        """Capture anew what is called with arguments that have defaults."""
        for path in borders.paths:
            calls = [call for call in borders.calls if call.path == path]
            form = _form(calls[0])
            if any(_form(call) != form for call in calls):
                raise MisfitError(path, "it is called in several ways")
            if self._form.setdefault(path, self._required(path)) != form:
                self._form[path] = form
                if not self.add(path, calls[0]):
                    raise MisfitError(path, "it cannot be captured as it is called")

    def _check_graphs(self, borders: Borders) -> None:
        """Compare the regions' graphs with what they stand for."""
        for call in borders.calls:
            captured = self._unchecked.pop(call.path, None)
            if captured is not None:
                try:
                    captured.check(call.inputs)
                except CaptureError as error:
                    raise MisfitError(call.path, "its graph does something else") from error

    def _required(self, path: str) -> tuple[int, frozenset[str]]:
        nodes = self.graphs[region_key(path, "eval")].nodes
        return sum(n.op == "placeholder" and not n.args for n in nodes), frozenset()

    def open_calls(self, borders: Borders) -> None:
        """Open opaque calls inside the regions.

        The Python code hands a region tensors of many sizes, so a function that makes numbers of
        them stays closed.

        Parameters
        ----------
        borders : Borders
            How the regions are called.
        """
        for path in self.paths:
            module = self.model.get_submodule(path)
            args, kwargs = next(call for call in borders.calls if call.path == path).inputs
            keys = [key for key in self.graphs if split_key(key)[0] == path]
            inner = {key: _unprefixed(self.graphs[key], path) for key in keys}
            opened = [open_calls(module, g, args, kwargs, any_size=True) for g in inner.values()]
            if any(opened):
                modes = {split_key(key)[1]: graph for key, graph in inner.items()}
                drop_same(module, modes)
                for key in keys:
                    del self.graphs[key]
                self.graphs.update(
                    {region_key(path, m): _prefixed(g, path) for m, g in modes.items()}
                )


def find_regions(model: nn.Module) -> Regions:
    """Return the largest parts of a model that can be captured.

    Parameters
    ----------
    model : nn.Module
        A private copy.
    """
    regions = Regions(model)
    regions.try_below("")
    return regions


def known_regions(model: nn.Module, borders: Borders) -> Regions:
    """Capture the regions that an earlier run showed.

    Raises
    ------
    CaptureError
        If one of them cannot be captured: the model is another one.
    """
    regions = Regions(model)
    for path in borders.paths:
        call = next(call for call in borders.calls if call.path == path)
        try:
            found = regions.add(path, call)
        except AttributeError:
            found = False
        if not found:
            raise CaptureError(f"the model has no part {path!r} that can be captured")
    return regions


def places(model: nn.Module, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name and parent of every place where a module occurs in a model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is module:
                yield name, parent


def _form(call: RegionCall) -> tuple[int, frozenset[str]]:
    return len(call.inputs[0]), frozenset(call.inputs[1])


def _prefixed(graph: fx.Graph, path: str) -> fx.Graph:
    """Return a copy of a graph whose names start at the whole model."""
    made = copy.deepcopy(graph)
    for node in made.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = f"{path}.{node.target}"
    return made


def _unprefixed(graph: fx.Graph, path: str) -> fx.Graph:
    """Return a copy of a graph whose names start at the region."""
    made = copy.deepcopy(graph)
    for node in made.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = str(node.target).removeprefix(f"{path}.")
    return made
