"""The whole way on real data: train once with a controller, cut, prove, export, measure."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models import resnet18

from fxprune._files import replacing
from fxprune._tables import percent
from fxprune.data import ImageData, digits
from fxprune.errors import ConfigError
from fxprune.inputs import check_count
from fxprune.report import Report, report
from fxprune.training import NetworkFigures, TrainingResult, TrainSettings, train

__all__ = ["DemoResult", "run_demo"]

_QUICK_IMAGES = 256
_ROUND_TO = 16  # onnxruntime on the CPU computes channels in blocks of 16
_REPORTS = ("report.md", "report.html", "result.json")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found; `str` gives tables.

    Attributes
    ----------
    training : TrainingResult
        Of the dense network and of the pruned one: accuracy, budget, agreement of the gated with
        the compact network and of torch with onnxruntime.
    report : Report
        Widths, MACs, parameters, file sizes and measured latency.
    files : tuple of Path
        What was written.
    seconds : float
        Time the demo took.
    """

    training: TrainingResult
    report: Report
    files: tuple[Path, ...]
    seconds: float

    @property
    def accuracy_dense(self) -> float:
        """Share of the test images that the dense ONNX file classifies right in onnxruntime."""
        return _share(self.training.dense)

    @property
    def accuracy_compact(self) -> float:
        """The same of the compact one, which was never fine-tuned."""
        return _share(self.training.compact)

    @property
    def test_images(self) -> int:
        """How many images these shares are of."""
        accuracy = self.training.compact.accuracy
        return 0 if accuracy is None else accuracy.total

    def __str__(self) -> str:
        written = "\n".join(str(path) for path in self.files)
        checks = "\n".join(self.training.checks())
        return (
            f"{self._title()}\n\n{self.training.table('text')}\n\n{checks}"
            f"\n\n{self.report}\n\nWritten after {self.seconds:.0f} s\n\n{written}"
        )

    def to_markdown(self) -> str:
        """Return the tables in Markdown."""
        checks = "\n\n".join(self.training.checks())
        return (
            "# fxprune demo: resnet18 on handwritten digits\n\n"
            f"## {self._title()}\n\n{self.training.table('markdown')}\n\n"
            f"{checks}\n\n{self.report.to_markdown()}\n"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values.

        Returns
        -------
        dict
            JSON-serialisable, with the keys ``accuracy`` (``dense``, ``compact``, ``torch_dense``,
            ``torch_compact``, ``test_images``), ``epochs``, ``selection``, ``verification``,
            ``onnx_error``, ``report``, ``files`` and ``seconds``.
        """
        networks = {"dense": self.training.dense, "compact": self.training.compact}
        return {
            "accuracy": {
                **{name: _share(figures) for name, figures in networks.items()},
                **{f"torch_{name}": _torch_share(figures) for name, figures in networks.items()},
                "test_images": self.test_images,
            },
            "epochs": self.training.epochs,
            "selection": self.training.selection.summary(),
            "verification": dataclasses.asdict(self.training.verification),
            "onnx_error": max(figures.onnx_error or 0.0 for figures in networks.values()),
            "report": self.report.to_dict(),
            "files": [str(path) for path in self.files],
            "seconds": self.seconds,
        }

    def _title(self) -> str:
        return f"The same network trained twice, {self.test_images} test images, no fine-tuning"


def run_demo(
    out: str | os.PathLike[str] = "demo",
    *,
    epochs: int = 12,
    macs: float = 0.5,
    seed: int = 0,
    quick: bool = False,
) -> DemoResult:
    """Train a resnet18 on handwritten digits with and without pruning, export and measure both.

    The pruned one is trained once, from random weights, by `fxprune.controllers.AutoTrainOnce`.

    Parameters
    ----------
    out : str or PathLike
        Directory for ``dense.onnx``, ``compact.onnx``, ``compact.pt``, ``log.csv``, ``log.png``
        (with matplotlib), ``report.md``, ``report.html`` and ``result.json``; made if it is not
        there. Files of an earlier demo are replaced when this one has succeeded.
    epochs : int
        Passes over the training images, for each network.
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
    settings = TrainSettings(
        macs=macs,
        epochs=epochs,
        round_to=_ROUND_TO,
        seed=seed,
        device="cpu",
        # A run this short is not resumed: its folder is gone at the end.
        checkpoint_every=1 << 30,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = resnet18(num_classes=data.n_classes)
    with _quiet(), tempfile.TemporaryDirectory(prefix=".training-", dir=folder) as scratch:
        trained = train(model, data, settings, Path(scratch) / "run")
        found = report(trained.dense_network, trained.gated, data.test_images[:1])
        trained = _moved(trained, folder)
    files = (*trained.files, *(folder / name for name in _REPORTS))
    result = DemoResult(trained, found, files, time.perf_counter() - started)
    _write(result, folder)
    return result


def _moved(trained: TrainingResult, folder: Path) -> TrainingResult:
    """Move what a run wrote into another folder."""
    files = tuple(path.replace(folder / path.name) for path in trained.files)

    def there(figures: NetworkFigures) -> NetworkFigures:
        path = None if figures.onnx is None else folder / figures.onnx.name
        return dataclasses.replace(figures, onnx=path)

    return dataclasses.replace(
        trained, dense=there(trained.dense), compact=there(trained.compact), files=files
    )


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


def _share(figures: NetworkFigures) -> float:
    return float("nan") if figures.accuracy is None else figures.accuracy.share


def _torch_share(figures: NetworkFigures) -> float:
    return float("nan") if figures.accuracy is None else figures.accuracy.torch_share


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
