"""What torch-pruning makes of one model on the same inputs, stage by stage: build, graph, cut, run.

It is used as its own examples use it: magnitude of the weights, half of the channels, the layers
that make the outputs ignored. It has no gated form to compare the result with, so all that can be
asked is whether the cut model runs and its outputs are finite and of the old shapes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coverage_.processes import Stage, measured_peak
from coverage_.subjects import Subject, randomise
from fxprune.errors import ConfigError, VerificationError
from fxprune.inputs import flatten_outputs

__all__ = ["Peer"]

_CLASSES = frozenset((91, 90, 364, 546))  # rows of what detectors predict; others are seen


class Peer:
    """The stages for one model; every stage uses what those before it left.

    Parameters
    ----------
    subject : Subject

    Raises
    ------
    ConfigError
        If torch-pruning is not installed.
    """

    def __init__(self, subject: Subject) -> None:
        try:
            import torch_pruning
        except ImportError as error:
            raise ConfigError(
                "torch-pruning is not installed.", hint="pip install 'fxprune[bench]'"
            ) from error
        self._library = torch_pruning
        self._subject = subject
        self._inputs = subject.inputs()
        self._model = nn.Module()
        self._shapes: list[tuple[int, ...]] = []

    def stages(self) -> Iterator[Stage]:
        """Yield the name of each stage and the function that runs it."""
        yield "build", self._build
        yield "graph", self._graph
        yield "cut", self._cut
        yield "run", self._run

    def _build(self) -> Mapping[str, Any]:
        self._model = self._subject.build()
        randomise(self._model, self._inputs)
        self._shapes = [tuple(tensor.shape) for tensor in self._outputs()]
        return {"params": _params(self._model)}

    def _graph(self) -> Mapping[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        before, peak = measured_peak(self._build_graph)
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        return {
            "seconds": {key: round(value, 2) for key, value in seconds.items()},
            "added_gib": round(peak - before, 3),
        }

    def _build_graph(self) -> None:
        self._library.DependencyGraph().build_dependency(self._model, self._inputs, verbose=False)

    def _cut(self) -> Mapping[str, Any]:
        dense = _params(self._model)
        widths = _CLASSES | {shape[1] for shape in self._shapes if len(shape) > 1}
        heads = [
            module
            for module in self._model.modules()
            if getattr(module, "out_features", getattr(module, "out_channels", None)) in widths
        ]
        pruner = self._library.pruner.BasePruner(
            self._model,
            self._inputs,
            importance=self._library.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=heads,
        )
        pruner.step()
        return {"half_params": _params(self._model) / dense}

    def _run(self) -> Mapping[str, Any]:
        outputs = self._outputs()
        shapes = [tuple(tensor.shape) for tensor in outputs]
        if not self._subject.listed and shapes != self._shapes:
            raise VerificationError(f"Outputs changed shape: {self._shapes} to {shapes}.")
        if not all(torch.isfinite(tensor).all() for tensor in outputs):
            raise VerificationError("Outputs hold NaN or infinity.")
        return {"outputs": len(outputs)}

    def _outputs(self) -> list[Tensor]:
        with torch.no_grad():
            return [tensor for _, tensor in flatten_outputs(self._model(*self._inputs))]


def _params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
