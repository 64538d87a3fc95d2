from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reproduce_samples import ROOT, write


@pytest.fixture(scope="module")
def tools() -> Iterator[object]:
    """Return run.py; the modules beside it are its attributes by their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        module = importlib.import_module("run")
        for name in ("cifar", "recipes", "imagenet", "networks"):
            patch.setattr(module, f"{name}_module", importlib.import_module(name), raising=False)
        yield module


@pytest.fixture(scope="module")
def cifar10(tools, tmp_path_factory):
    return tools.cifar("cifar10", write(tmp_path_factory.mktemp("cifar10"), "cifar10"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Return two classes of images in the folders of ImageNet."""
    root = tmp_path_factory.mktemp("imagenet")
    for part, count in (("train", 10), ("val", 3)):
        for name in ("n01440764", "n01443537"):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                seed = 100 * (part == "val") + 10 * (name == "n01440764") + i
                noise = np.random.default_rng(seed).integers(256, size=(40, 48, 3), dtype=np.uint8)
                Image.fromarray(noise).save(root / part / name / f"{i}.JPEG")
    return root
