"""The commands: each takes parsed arguments and returns what to print, as text and as data."""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from fxprune._tables import count, file_size, percent, shape_text, table
from fxprune.api import Ignore, auto_gate
from fxprune.cli.models import build_model, parse_inputs
from fxprune.demo import run_demo
from fxprune.dependency_plot import plot_dependencies
from fxprune.errors import ConfigError
from fxprune.explain import explain_gated
from fxprune.export import export_onnx
from fxprune.inputs import ExampleInputs
from fxprune.latency import Latency, compare_latency
from fxprune.measure import gated_inputs
from fxprune.onnx_cost import OnnxCost, onnx_cost, onnx_inputs
from fxprune.plot import check_picture
from fxprune.prune import select
from fxprune.report import latency_line, report
from fxprune.serialize import save
from fxprune.verify import verify

__all__ = ["Answer", "compare", "demo", "ignored_names", "inspect", "prune"]

_SUFFIXES = (".pt", ".onnx")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command found.

    Attributes
    ----------
    text : str
        For people.
    data : dict
        For programs, JSON-serialisable.
    """

    text: str
    data: dict[str, Any]


def demo(args: argparse.Namespace) -> Answer:
    """Run the demo."""
    found = run_demo(args.out, epochs=args.epochs, macs=args.macs, seed=args.seed, quick=args.quick)
    return Answer(str(found), found.to_dict())


def inspect(args: argparse.Namespace) -> Answer:
    """Say what of a model is prunable."""
    if args.svg is not None:
        check_picture(args.svg)  # before any work is done
    model = build_model(args.model, args.weights)
    gated = auto_gate(
        model,
        _inputs(args),
        ignore=ignored_names(args.ignore),
        attention=args.attention,
        branches=args.branches,
    )
    found = explain_gated(gated, model)
    text, data = str(found), {"model": args.model, **found.to_dict()}
    if args.svg is not None:
        written = plot_dependencies(gated, args.svg)
        text += f"\n\nWritten: {written}"
        data["svg"] = str(written)
    return Answer(text, data)


def prune(args: argparse.Namespace) -> Answer:
    """Prune a model once, without training."""
    out = _output(args.out)
    ignored = ignored_names(args.ignore)
    with _stages(5) as stage:
        stage("build")
        model = build_model(args.model, args.weights)
        stage("gate")
        gated = auto_gate(
            model,
            _inputs(args),
            ignore=ignored,
            attention=args.attention,
            branches=args.branches,
        )
        selection = select(
            gated,
            macs=args.macs,
            params=args.params,
            importance=args.importance,
            round_to=args.round_to,
            seed=args.seed,
        )
        compact = gated.compact()
        stage("verify")
        positional, named = gated_inputs(gated)
        inputs: ExampleInputs = named or positional
        checked = verify(gated, compact, inputs)
        stage("write")
        if out is not None and out.suffix == ".onnx":
            export_onnx(compact, out, inputs)
        elif out is not None:
            save(compact, out)
        stage("measure")
        found = report(gated, compact, inputs, latency=args.latency)
    lines = [
        f"Budget: {selection}",
        "The compact model computes what the gated one computes: largest relative difference "
        f"{checked.max_rel_error:.1e}",
        *([] if out is None else [f"Written: {out}"]),
    ]
    data = {
        "model": args.model,
        "selection": selection.summary(),
        "verification": dataclasses.asdict(checked),
        "report": found.to_dict(),
        "out": None if out is None else str(out),
    }
    return Answer(f"{found}\n\n" + "\n".join(lines), data)


def compare(args: argparse.Namespace) -> Answer:
    """Compare two models or ONNX files."""
    names = (args.first, args.second)
    with tempfile.TemporaryDirectory(prefix="fxprune-") as scratch, _stages(3) as stage:
        stage("export")
        inputs, files = _onnx_files(args, names, Path(scratch))
        shapes = [tuple(tensor.shape) for tensor in inputs]
        stage("count")
        costs = [onnx_cost(file, shapes) for file in files]
        stage("measure")
        paths = {str(number): file for number, file in enumerate(files)}
        times = compare_latency(paths, inputs) if args.latency else {}
    latencies = [times.get(str(n)) for n in range(len(files))]
    data = {
        "input_shapes": [list(shape) for shape in shapes],
        "models": [
            {
                "name": name,
                **dataclasses.asdict(cost),
                "latency": None if latency is None else dataclasses.asdict(latency),
            }
            for name, cost, latency in zip(names, costs, latencies, strict=True)
        ],
    }
    return Answer(_comparison(names, shapes, costs, latencies), data)


@contextmanager
def _stages(total: int) -> Iterator[Callable[[str], None]]:
    """Show which of several stages is under way, when stderr is a terminal."""
    with tqdm(
        total=total, bar_format="{desc} {bar:20} {elapsed}", leave=False, disable=None
    ) as bar:

        def begin(name: str) -> None:
            bar.set_description_str(f"{name:8}")
            bar.update()

        yield begin


def _onnx_files(
    args: argparse.Namespace, names: Sequence[str], scratch: Path
) -> tuple[tuple[Tensor, ...], list[Path]]:
    """Return inputs for both models and their ONNX files, exporting what is not one yet."""
    inputs = parse_inputs(args.input or ())
    models = {name: build_model(name) for name in names if not name.endswith(".onnx")}
    if not inputs:
        inputs = _guessed(models, names)
    files = []
    for number, name in enumerate(names):
        path = Path(name)
        if name in models:
            path = scratch / f"{number}.onnx"
            export_onnx(models[name], path, inputs, dynamic_batch=False)
        files.append(path)
    return inputs, files


def _guessed(models: Mapping[str, nn.Module], names: Sequence[str]) -> tuple[Tensor, ...]:
    """Return inputs of the shape an ONNX file fixes, or else of the likely shape for a model."""
    for name in names:
        if name not in models:
            return onnx_inputs(name)
    positional, _ = gated_inputs(auto_gate(models[names[0]]))
    return positional


def _comparison(
    names: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
    costs: Sequence[OnnxCost],
    latencies: Sequence[Latency | None],
) -> str:
    a, b = costs
    rows: list[tuple[str, ...]] = [
        ("MACs", count(a.macs), count(b.macs), percent(b.macs, a.macs)),
        ("weights in the file", count(a.params), count(b.params), percent(b.params, a.params)),
        (
            "ONNX file",
            file_size(a.file_bytes),
            file_size(b.file_bytes),
            percent(b.file_bytes, a.file_bytes),
        ),
    ]
    lines = [
        f"not counted among the MACs of {name}: {', '.join(cost.uncounted)}"
        for name, cost in zip(names, costs, strict=True)
        if cost.uncounted
    ]
    first, second = latencies
    if first is not None and second is not None:
        times = (f"{one.median_ms:.3g} ms" for one in (first, second))
        rows.append(("measured latency", *times, ""))
        lines.append(latency_line(first, second))
    title = f"Input {', '.join(map(shape_text, shapes))}"
    body = table(rows, ("", *names, "second of first"))
    return "\n\n".join((title, body, *lines))


def _inputs(args: argparse.Namespace) -> tuple[Tensor, ...] | None:
    return parse_inputs(args.input) if args.input else None


def ignored_names(texts: Sequence[str]) -> list[Ignore]:
    """Turn what --ignore was given into what `fxprune.auto_gate` takes.

    Parameters
    ----------
    texts : sequence of str
        ``re:PATTERN`` becomes a pattern; everything else is a name.

    Returns
    -------
    list

    Raises
    ------
    ConfigError
        When a pattern is no regular expression.
    """
    found: list[Ignore] = []
    for text in texts:
        if not text.startswith("re:"):
            found.append(text)
            continue
        try:
            found.append(re.compile(text.removeprefix("re:")))
        except re.error as error:
            raise ConfigError(
                "The --ignore option was given something that is no regular expression.",
                seen=f"{text}: {error}",
                hint="without re: in front it is a name",
            ) from error
    return found


def _output(text: str | None) -> Path | None:
    """Check where the model is to be written before any work is done."""
    if text is None:
        return None
    path = Path(text)
    if path.suffix not in _SUFFIXES:
        raise ConfigError("The --out option takes a file ending in .pt or .onnx.", seen=text)
    if not path.parent.is_dir():
        raise ConfigError("The directory of --out does not exist.", where=str(path.parent))
    return path
