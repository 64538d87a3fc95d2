"""`report`: what pruning changed, in widths, MACs, parameters, bytes and measured time.

A ratio of MACs is not a speed-up, so the two never share a word here: MACs are *kept*, and a
latency is a time that was measured, with its threads, batch and repeats beside it.
"""

from __future__ import annotations

import copy
import dataclasses
import html
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from fxprune._files import replacing
from fxprune._tables import Style, count, file_size, html_page, percent, shape_text, table
from fxprune.comparison import Figures, GroupWidth, LayerShapes
from fxprune.errors import ConfigError, ExportError
from fxprune.export import OnnxExport, export_onnx
from fxprune.gated import GatedModule
from fxprune.inputs import ExampleInputs, fit_inputs, normalize_inputs
from fxprune.latency import Latency, compare_latency
from fxprune.measure import count_macs, count_params, input_shapes, module_kinds
from fxprune.modes import split_modes
from fxprune.plot import plot_widths

__all__ = ["Figures", "GroupWidth", "LayerShapes", "Report", "latency_line", "report"]


@dataclass(frozen=True, slots=True)
class Report:
    """What changed between two models; `str` gives tables.

    Attributes
    ----------
    before, after : Figures
        The figures of each model.
    input_shapes : tuple of tuple of int
        Shapes of the inputs that they hold for.
    groups : tuple of GroupWidth
        The groups, when the model before is a gated one.
    layers : tuple of LayerShapes
        Every parameter of either model.
    notes : tuple of str
        Remarks, such as what could not be measured and why.
    """

    before: Figures
    after: Figures
    input_shapes: tuple[tuple[int, ...], ...]
    groups: tuple[GroupWidth, ...]
    layers: tuple[LayerShapes, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n\n".join(f"{title}\n\n{body}" for title, body in self._sections("text"))

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        return "\n\n".join(f"## {title}\n\n{body}" for title, body in self._sections("markdown"))

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the tables as one HTML page.

        Parameters
        ----------
        path : str or PathLike
            The file; its directory must exist. An older file is replaced in one step.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            When the file cannot be written.
        """
        with replacing(path) as draft:
            page = html_page("fxprune report", self._sections("html"))
            draft.write_text(page, encoding="utf-8")
        return Path(path)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the groups' widths before and kept; needs the extra ``fxprune[plot]``.

        Parameters
        ----------
        path : str or PathLike
            The file, ending in ``.png``, ``.svg`` or ``.pdf``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ConfigError
            When matplotlib is not installed, the model before was not a gated one, or the file
            cannot be written.
        """
        return plot_widths([(g.name, g.size, g.kept) for g in self.groups], self._kept_line(), path)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values.

        Returns
        -------
        dict
            JSON-serialisable, with the names of the attributes as keys, and ``macs_kept`` and
            ``params_kept``, shares of the model before (None when that has none).
        """
        return {
            "input_shapes": [list(shape) for shape in self.input_shapes],
            "before": dataclasses.asdict(self.before),
            "after": dataclasses.asdict(self.after),
            "macs_kept": self.after.macs / self.before.macs if self.before.macs else None,
            "params_kept": self.after.params / self.before.params if self.before.params else None,
            "groups": [dataclasses.asdict(group) for group in self.groups],
            "layers": [
                {
                    "name": layer.name,
                    "kind": layer.kind,
                    "before": None if layer.before is None else list(layer.before),
                    "after": None if layer.after is None else list(layer.after),
                }
                for layer in self.layers
            ],
            "notes": list(self.notes),
        }

    def _sections(self, style: Style) -> list[tuple[str, str]]:
        summary = self._summary(style)
        lines = [self._kept_line(), *self._latency_lines(), *self.notes]
        if style == "html":
            lines = [f"<p>{html.escape(line)}</p>" for line in lines]
        separator = "\n\n" if style == "markdown" else "\n"
        title = f"Summary at input {', '.join(map(shape_text, self.input_shapes))}"
        sections = [(title, f"{summary}\n\n{separator.join(lines)}")]
        if self.groups:
            sections.append(("Groups", self._groups(style)))
        if self.layers:
            sections.append(("Layers", self._layers(style)))
        return sections

    def _summary(self, style: Style) -> str:
        a, b = self.before, self.after
        rows: list[tuple[str, ...]] = [
            ("MACs", count(a.macs), count(b.macs), percent(b.macs, a.macs)),
            ("parameters", count(a.params), count(b.params), percent(b.params, a.params)),
        ]
        if a.file_bytes is not None and b.file_bytes is not None:
            kept = percent(b.file_bytes, a.file_bytes)
            rows.append(("ONNX file", file_size(a.file_bytes), file_size(b.file_bytes), kept))
        if a.latency is not None and b.latency is not None:
            times = (f"{one.median_ms:.3g} ms" for one in (a.latency, b.latency))
            rows.append(("measured latency", *times, ""))
        return table(rows, ("", "before", "after", "kept"), style)

    def _kept_line(self) -> str:
        a, b = self.before, self.after
        return f"MACs kept {percent(b.macs, a.macs)}, parameters kept {percent(b.params, a.params)}"

    def _latency_lines(self) -> list[str]:
        a, b = self.before.latency, self.after.latency
        if a is None or b is None:
            return []
        return [latency_line(a, b)]

    def _groups(self, style: Style) -> str:
        rows = ((g.name, g.kind, g.size, g.kept, percent(g.kept, g.size)) for g in self.groups)
        return table(rows, ("group", "kind", "units before", "kept", "share"), style)

    def _layers(self, style: Style) -> str:
        """One row per module, with the shape of its largest parameter."""
        modules: dict[str, list[LayerShapes]] = {}
        for layer in self.layers:
            modules.setdefault(layer.name.rpartition(".")[0], []).append(layer)
        rows: list[tuple[str, ...]] = []
        for own in modules.values():
            largest = max(own, key=lambda layer: math.prod(layer.before or layer.after or ()))
            shapes = [
                "none" if shape is None else shape_text(shape)
                for shape in (largest.before, largest.after)
            ]
            same = all(layer.before == layer.after for layer in own)
            rows.append((largest.name, largest.kind, shapes[0], "unchanged" if same else shapes[1]))
        return table(rows, ("parameter", "kind", "before", "after"), style)


def report(
    before: nn.Module,
    after: nn.Module,
    example_inputs: ExampleInputs,
    *,
    latency: bool = True,
    threads: int = 1,
    repeats: int = 30,
) -> Report:
    """Compare two models: widths, MACs, parameters, ONNX file size, measured latency.

    Parameters
    ----------
    before, after : nn.Module or GatedModule
        The models; neither is changed. A gated `before` counts with all its gates open, a gated
        `after` as what its masks keep. One that was shrunk counts as it is now: to compare with the
        whole, pass the original model as `before` and this one as `after`.
    example_inputs : Tensor, tuple, list or dict
        Inputs for both; their batch is the one measured.
    latency : bool
        Measure both ONNX files in onnxruntime on the CPU, in turns.
    threads : int
        Threads one operator may use.
    repeats : int
        Timed runs per model.

    Returns
    -------
    Report
        ``print`` shows its tables.

    Raises
    ------
    ConfigError
        When an argument has the wrong type or range.
    InputError
        When a model does not run on the inputs.

    Notes
    -----
    Both models are exported to a temporary directory and deleted afterwards. When an export fails,
    file sizes and latency are left out and `Report.notes` says why.

    Examples
    --------
    >>> net, small = nn.Linear(8, 4), nn.Linear(8, 2)
    >>> report(net, small, torch.zeros(1, 8), latency=False).to_dict()["macs_kept"]
    0.5
    """
    for name, model in (("before", before), ("after", after)):
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"The '{name}' argument of report must be a torch.nn.Module.",
                seen=type(model).__name__,
            )
    inputs = normalize_inputs(example_inputs)
    gated = next((model for model in (before, after) if isinstance(model, GatedModule)), None)
    groups = () if gated is None else _group_widths(gated)
    models = {"before": _dense(before), "after": _kept(after)}
    macs = {name: count_macs(model, example_inputs) for name, model in models.items()}
    files: dict[str, OnnxExport] = {}
    times: dict[str, Latency] = {}
    notes: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory(prefix="fxprune-") as scratch:
        try:
            for name, model in models.items():
                path = Path(scratch) / f"{name}.onnx"
                files[name] = export_onnx(model, path, example_inputs, dynamic_batch=False)
        except ExportError as error:
            notes = (f"The model {name} is not measured as an ONNX file: {error.what}",)
        if latency and not notes:
            paths = {name: export.path for name, export in files.items()}
            fitted = fit_inputs(models["before"], inputs)
            feed = fitted[1] or fitted[0]
            times = compare_latency(paths, feed, threads=threads, repeats=repeats)
    figures = {
        name: Figures(
            macs[name],
            count_params(model),
            None if notes else files[name].bytes,
            times.get(name),
        )
        for name, model in models.items()
    }
    return Report(
        figures["before"],
        figures["after"],
        input_shapes(inputs),
        groups,
        _layer_shapes(models["before"], models["after"]),
        notes,
    )


def latency_line(before: Latency, after: Latency) -> str:
    """Return two measured times in words, with how they were measured.

    Parameters
    ----------
    before, after : Latency
        Measured alike.

    Returns
    -------
    str
        For example ``latency 3.2 ms -> 2.1 ms (1 thread, batch 1, median of 30)``.
    """
    threads = f"{before.threads} thread{'' if before.threads == 1 else 's'}"
    return (
        f"latency {before.median_ms:.3g} ms -> {after.median_ms:.3g} ms "
        f"({threads}, batch {before.batch}, median of {before.repeats})"
    )


def _dense(model: nn.Module) -> nn.Module:
    """Return a gated model's compact form with every unit kept; another model as it is."""
    if not isinstance(model, GatedModule):
        return model
    dense = copy.deepcopy(model)
    dense.set_keep({g.name: torch.ones(g.size, dtype=torch.bool) for g in dense.groups})
    return dense.compact()


def _kept(model: nn.Module) -> nn.Module:
    return model.compact() if isinstance(model, GatedModule) else model


def _group_widths(gated: GatedModule) -> tuple[GroupWidth, ...]:
    """Return the groups of the original model, and how much of each is kept."""
    keep = gated.original_keep
    return tuple(
        GroupWidth(g.name, g.kind, g.size, int(keep[g.name].sum())) for g in gated.original_groups
    )


def _layer_shapes(before: nn.Module, after: nn.Module) -> tuple[LayerShapes, ...]:
    shapes: list[dict[str, tuple[int, ...]]] = []
    kinds: dict[str, str] = {}
    for model in (after, before):
        # A compact model with a graph per mode holds each layer's path below both graphs.
        graphs = split_modes(model) if isinstance(model, fx.GraphModule) else None
        parts = [model] if graphs is None else list(graphs.values())
        shapes.append({n: tuple(p.shape) for part in parts for n, p in part.named_parameters()})
        for part in parts:
            kinds |= module_kinds(part)
    second, first = shapes
    return tuple(
        LayerShapes(name, kinds[name.rpartition(".")[0]], first.get(name), second.get(name))
        for name in dict.fromkeys([*first, *second])
    )
