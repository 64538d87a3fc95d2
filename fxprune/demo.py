"""The whole way on real data: train, gate, cut, verify, fine-tune, export, measure."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from fxprune._files import replacing
from fxprune._tables import Style, percent, table
from fxprune.api import auto_gate
from fxprune.budget import Selection
from fxprune.data import ImageData, digits
from fxprune.errors import ConfigError
from fxprune.export import export_onnx
from fxprune.inputs import check_count
from fxprune.measure import evaluating
from fxprune.prune import select
from fxprune.report import Report, report
from fxprune.runtime import OnnxModel
from fxprune.serialize import save
from fxprune.verify import Verification, verify

__all__ = ["DemoResult", "run_demo"]

_BATCH = 64
_QUICK_IMAGES = 256
_TRAIN_RATE = 0.05
_TUNE_RATE = 0.02
_TUNE_DIVISOR = 3  # fine-tuning takes a third as many epochs as training
_ROUND_TO = 16  # onnxruntime on the CPU computes channels in blocks of 16


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found; `str` gives tables.

    Attributes
    ----------
    accuracy_dense, accuracy_cut, accuracy_compact : float
        Share of the test images that are classified right: before pruning, right after the cut, and
        after fine-tuning. The first and the last are of the ONNX files in onnxruntime.
    test_images : int
        How many images that share is of.
    epochs, tuning_epochs : int
        Passes over the training images, before and after the cut.
    selection : Selection
        What was asked of the cut and what it reached.
    verification : Verification
        Agreement of the gated with the compact model, right after the cut.
    onnx_error : float
        Largest difference between torch and onnxruntime over both files, as a share of the output's
        largest magnitude.
    report : Report
        Widths, MACs, parameters, file sizes and measured latency.
    files : tuple of Path
        What was written.
    seconds : float
        Time the demo took.
    """

    accuracy_dense: float
    accuracy_cut: float
    accuracy_compact: float
    test_images: int
    epochs: int
    tuning_epochs: int
    selection: Selection
    verification: Verification
    onnx_error: float
    report: Report
    files: tuple[Path, ...]
    seconds: float

    def __str__(self) -> str:
        written = "\n".join(str(path) for path in self.files)
        checks = "\n".join(self._checks())
        return (
            f"Accuracy on {self.test_images} test images\n\n{self._accuracy('text')}\n\n{checks}"
            f"\n\n{self.report}\n\nWritten after {self.seconds:.0f} s\n\n{written}"
        )

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        checks = "\n\n".join(self._checks())
        return (
            "# fxprune demo: resnet18 on handwritten digits\n\n"
            f"## Accuracy on {self.test_images} test images\n\n{self._accuracy('markdown')}\n\n"
            f"{checks}\n\n{self.report.to_markdown()}\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values.

        Returns
        -------
        dict
            JSON-serialisable, with the keys ``accuracy`` (``dense``, ``cut``, ``compact``,
            ``test_images``), ``epochs``, ``tuning_epochs``, ``selection``, ``verification``,
            ``onnx_error``, ``report``, ``files`` and ``seconds``.
        """
        return {
            "accuracy": {
                "dense": self.accuracy_dense,
                "cut": self.accuracy_cut,
                "compact": self.accuracy_compact,
                "test_images": self.test_images,
            },
            "epochs": self.epochs,
            "tuning_epochs": self.tuning_epochs,
            "selection": self.selection.summary(),
            "verification": dataclasses.asdict(self.verification),
            "onnx_error": self.onnx_error,
            "report": self.report.to_dict(),
            "files": [str(path) for path in self.files],
            "seconds": self.seconds,
        }

    def _accuracy(self, style: Style) -> str:
        tuned = f"{self.epochs} + {self.tuning_epochs}"
        rows = [
            ("dense", str(self.epochs), percent(self.accuracy_dense), "onnxruntime"),
            ("cut, not tuned", str(self.epochs), percent(self.accuracy_cut), "torch"),
            ("compact", tuned, percent(self.accuracy_compact), "onnxruntime"),
        ]
        return table(rows, ("model", "epochs", "accuracy", "computed by"), style)

    def _checks(self) -> tuple[str, ...]:
        return (
            f"Budget: {self.selection}",
            "The compact model computes what the gated one computes: largest relative difference "
            f"{self.verification.max_rel_error:.1e}",
            "The ONNX files compute what torch computes: largest relative difference "
            f"{self.onnx_error:.1e}",
        )


def run_demo(
    out: str | os.PathLike[str] = "demo",
    *,
    epochs: int = 12,
    macs: float = 0.5,
    seed: int = 0,
    quick: bool = False,
) -> DemoResult:
    """Train a resnet18 on handwritten digits, prune it, fine-tune it, export and measure it.

    Parameters
    ----------
    out : str or PathLike
        Directory for ``dense.onnx``, ``compact.onnx``, ``compact.pt``, ``report.md``,
        ``report.html`` and ``result.json``; made if it is not there.
    epochs : int
        Passes over the training images; fine-tuning takes a third as many.
    macs : float in (0, 1]
        Share of the dense model's MACs to keep.
    seed : int
        For weights, data split and order. Torch's global random state is not touched.
    quick : bool
        One epoch on 256 images: only shows that everything runs.

    Returns
    -------
    DemoResult
        ``print`` shows its tables. Progress goes to stderr.

    Raises
    ------
    ConfigError
        When scikit-learn is not installed, an argument is wrong, or `out` cannot be written.
    BudgetError
        When `macs` is out of range or cannot be reached.
    """
    started = time.perf_counter()
    check_count("epochs", epochs)
    data = digits(seed=seed)
    if quick:
        epochs, data = 1, _first_images(data)
    folder = _make_folder(out)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet18(num_classes=10)
        example = data.test_images[:1]
        # A budget that cannot be reached must not cost a training run first.
        select(auto_gate(model, example), macs=macs, round_to=_ROUND_TO)

        _train(model, data, epochs, _TRAIN_RATE, "train")
        gated = auto_gate(model, example).eval()
        selection = select(gated, macs=macs, round_to=_ROUND_TO)
        compact = gated.compact()
        verification = verify(gated, compact, data.test_images[:_BATCH])
        accuracy_cut = _torch_accuracy(compact, data)
        tuning_epochs = max(1, epochs // _TUNE_DIVISOR)
        _train(compact, data, tuning_epochs, _TUNE_RATE, "fine-tune")

        exports = [
            export_onnx(one, folder / f"{name}.onnx", example)
            for name, one in (("dense", model), ("compact", compact))
        ]
        save(compact, folder / "compact.pt")
        accuracies = [_onnx_accuracy(export.path, data) for export in exports]
        found = report(gated, compact, example)
    result = DemoResult(
        accuracy_dense=accuracies[0],
        accuracy_cut=accuracy_cut,
        accuracy_compact=accuracies[1],
        test_images=len(data.test_labels),
        epochs=epochs,
        tuning_epochs=tuning_epochs,
        selection=selection,
        verification=verification,
        onnx_error=max(export.max_rel_error for export in exports),
        report=found,
        files=tuple(
            folder / name
            for name in (
                *("dense.onnx", "compact.onnx", "compact.pt"),
                *("report.md", "report.html", "result.json"),
            )
        ),
        seconds=time.perf_counter() - started,
    )
    _write(result, folder)
    return result


def _write(result: DemoResult, folder: Path) -> None:
    accuracy = (
        f"accuracy {percent(result.accuracy_dense)} -> {percent(result.accuracy_compact)} "
        f"({result.test_images} test images, in onnxruntime)"
    )
    dataclasses.replace(result.report, notes=(*result.report.notes, accuracy)).to_html(
        folder / "report.html"
    )
    texts = {
        "report.md": result.to_markdown(),
        "result.json": json.dumps(result.to_dict(), indent=1) + "\n",
    }
    for name, text in texts.items():
        with replacing(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")


def _train(model: nn.Module, data: ImageData, epochs: int, rate: float, name: str) -> None:
    """Train with SGD and one cycle of the learning rate; leave the model in eval mode."""
    n = len(data.train_labels)
    steps = epochs * -(-n // _BATCH)
    optimizer = torch.optim.SGD(
        model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    with tqdm(total=steps, desc=name, unit="step") as bar:
        for _ in range(epochs):
            seen = right = 0
            order = torch.randperm(n)
            for start in range(0, n, _BATCH):
                rows = order[start : start + _BATCH]
                labels = data.train_labels[rows]
                scores = model(data.train_images[rows])
                loss = F.cross_entropy(scores, labels)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                seen, right = seen + len(rows), right + _right(scores.detach(), labels)
                now = {"loss": f"{loss.item():.3f}", "accuracy": percent(right, seen)}
                bar.set_postfix(now, refresh=False)
                bar.update()
    model.eval()


def _right(scores: Tensor, labels: Tensor) -> int:
    return int((scores.argmax(1) == labels).sum())


def _torch_accuracy(model: nn.Module, data: ImageData) -> float:
    with evaluating(model), torch.no_grad():
        return _right(model(data.test_images), data.test_labels) / len(data.test_labels)


def _onnx_accuracy(path: Path, data: ImageData) -> float:
    model = OnnxModel(path, threads=torch.get_num_threads())
    scores = torch.from_numpy(model.run(model.feed(data.test_images))[0])
    return _right(scores, data.test_labels) / len(data.test_labels)


def _first_images(data: ImageData) -> ImageData:
    return dataclasses.replace(
        data,
        train_images=data.train_images[:_QUICK_IMAGES],
        train_labels=data.train_labels[:_QUICK_IMAGES],
    )


def _make_folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            "The directory for the demo's files cannot be made.",
            where=str(folder),
            seen=f"{type(error).__name__}: {error.strerror}",
            hint="pass a directory that is writable",
        ) from error
    return folder


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
