"""Parts of a model that tracing with shapes cannot follow: torch.export writes their forward anew.

A part is the smallest module that resists; where it cannot be exported either, the module around it
is tried, and so on. The trace then starts anew, with the forward that the export gave in the place
of its own: plain calls of torch's functions and of the modules inside, so that the graph of the
whole stays one graph in one spelling, and dropout and BatchNorm inside stay the modules they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from fxprune.capture.exported import depends_on_data, export_graph
from fxprune.capture.shaped import OneSizeError, ShapedProxy, Twin
from fxprune.capture.trees import Container, Leaf, describe
from fxprune.errors import CaptureError

__all__ = ["PartCall", "Parts"]

_MOST = 16
"""Parts of one model; to export the whole of one with more takes less time."""

_CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True, slots=True)
class PartCall:
    """How a module is called in a trace.

    Attributes
    ----------
    path : str
    tree : Container
        Of ``(args, kwargs)``.
    leaves : tuple of Twin
        What the tensors are at either size.
    """

    path: str
    tree: Any
    leaves: tuple[Twin, ...]

    @classmethod
    def of(cls, path: str, args: Any, kwargs: Any) -> PartCall:
        """Describe a call with traced values."""
        leaves: list[Any] = []
        tree = describe((args, kwargs), lambda v: isinstance(v, (Tensor, fx.Proxy)), leaves)
        twins = (v.twin if isinstance(v, ShapedProxy) else (v, v) for v in leaves)
        return cls(path, tree, tuple(twins))

    def key(self, training: bool) -> str | None:
        """Return a text that is the same for calls that one export serves; None if none can."""
        if not _is_plain(self.tree) or not all(isinstance(one, Tensor) for one, _ in self.leaves):
            return None
        sides = [[(tuple(side.shape), side.dtype) for side in twin] for twin in self.leaves]
        return f"{self.path} {training} {self.tree} {sides}"


class Parts:
    """The parts of one model that are exported.

    Parameters
    ----------
    model : nn.Module
        The whole. Constants that exports find are registered on its parts as buffers.
    hopeless : set of str
        Receives the paths of parts whose forward depends on data: no other shape helps.
    """

    def __init__(self, model: nn.Module, hopeless: set[str]) -> None:
        self._model = model
        self._hopeless = hopeless
        self._forwards: dict[str, Callable[..., Any]] = {}
        self._failed: set[str] = set()

    def forward(self, call: PartCall) -> Callable[..., Any] | None:
        """Return the exported forward of a part for a call, or None if it is none."""
        key = call.key(self._model.training) if self._forwards else None
        return None if key is None else self._forwards.get(key)

    def add(self, calls: Sequence[PartCall], error: CaptureError) -> bool:
        """Export the smallest of the modules that were being called as tracing failed.

        Parameters
        ----------
        calls : sequence of PartCall
            From the outermost to the innermost.
        error : CaptureError
            Why tracing failed.

        Returns
        -------
        bool
            Whether one was exported that was not before: tracing may come further now.
        """
        if isinstance(error.__cause__, OneSizeError) or any(map(self.forward, calls)):
            return False  # an export would not leave that size open either, or did not help
        for call in reversed(calls):
            key = call.key(self._model.training)
            if key is None or key in self._failed or call.path in self._hopeless:
                continue
            if len(self._forwards) == _MOST:
                return False
            try:
                self._forwards[key] = self._export(call)
            except CaptureError as refused:
                self._failed.add(key)
                if depends_on_data(refused):
                    self._hopeless.add(call.path)
            else:
                return True
        return False

    def _export(self, call: PartCall) -> Callable[..., Any]:
        module = self._model.get_submodule(call.path)
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        tensors = tuple(
            torch.zeros(one.shape, dtype=one.dtype, device=device) for one, _ in call.leaves
        )
        dims = tuple(
            {
                d: Dim.STATIC if a == b else Dim.DYNAMIC
                for d, (a, b) in enumerate(zip(one.shape, other.shape, strict=True))
            }
            for one, other in call.leaves
        )
        graph = export_graph(module, call.tree, tensors, dims, keeps_inputs=True)
        forward: Callable[..., Any] = fx.GraphModule(module, graph).forward
        return forward


def _is_plain(tree: Any) -> bool:
    if isinstance(tree, Container):
        return all(map(_is_plain, tree.items))
    return isinstance(tree, (Leaf, *_CONSTANTS))
