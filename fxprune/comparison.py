"""The rows of a report: widths of groups, shapes of layers, figures of a model."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.analysis.plan import GroupKind
from fxprune.latency import Latency

__all__ = ["Figures", "GroupWidth", "LayerShapes"]


@dataclass(frozen=True, slots=True)
class GroupWidth:
    """A group's units before pruning and kept.

    Attributes
    ----------
    name : str
        The group.
    kind : {"channel", "head", "head_dim", "branch"}
        What a unit is.
    size, kept : int
        Units before, and kept by the masks.
    """

    name: str
    kind: GroupKind
    size: int
    kept: int


@dataclass(frozen=True, slots=True)
class LayerShapes:
    """A parameter's shape before and after.

    Attributes
    ----------
    name : str
        Fully qualified name of the parameter.
    kind : str
        Type of the module that holds it.
    before, after : tuple of int, or None
        Shapes; None where the model has no parameter of that name.
    """

    name: str
    kind: str
    before: tuple[int, ...] | None
    after: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one model.

    Attributes
    ----------
    macs : int
        Multiply-accumulates of one forward, batch included.
    params : int
        Number of parameters.
    file_bytes : int or None
        Size of the ONNX file in bytes; None when the model could not be exported.
    latency : Latency or None
        Measured time of one run in onnxruntime; None when it was not measured.
    """

    macs: int
    params: int
    file_bytes: int | None
    latency: Latency | None
