"""Save and load: data only, bit-identical, and clear answers to wrong files and models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._files import replacing
from fxprune.errors import ConfigError, LoadError
from fxprune.settings import FORMAT, Recipe

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.b = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.b(torch.relu(self.norm(self.a(x))))
        return y if scale is None else y * scale


@pytest.mark.parametrize(
    "inputs",
    [IMAGE, (IMAGE, torch.ones(1)), {"x": IMAGE, "scale": torch.ones(1)}],
    ids=["tensor", "tuple", "dict"],
)
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, inputs: object) -> None:
    compact = fxprune.prune(Net(), inputs, params=0.5, ignore=re.compile("^b"))
    compact.train()
    args = {"x": IMAGE} if isinstance(inputs, Tensor) else {"x": IMAGE, "scale": torch.ones(1)}
    compact(**args)  # training after the cut is saved too: BatchNorm statistics have moved
    fxprune.save(compact, tmp_path / "m.pt")
    loaded = fxprune.load(tmp_path / "m.pt", Net())
    assert [*loaded.state_dict()] == [*compact.state_dict()]
    assert all(torch.equal(t, compact.state_dict()[n]) for n, t in loaded.state_dict().items())
    assert torch.equal(loaded.eval()(**args), compact.eval()(**args))


def test_the_file_holds_no_code(tmp_path: Path) -> None:
    fxprune.save(fxprune.prune(Net(), IMAGE, params=0.5), tmp_path / "m.pt")
    assert set(torch.load(tmp_path / "m.pt", weights_only=True)) == {"fxprune", "state_dict"}


def test_a_compact_model_can_be_saved_again_after_loading(tmp_path: Path) -> None:
    fxprune.save(fxprune.prune(Net(), IMAGE, params=0.5), tmp_path / "m.pt")
    loaded = fxprune.load(tmp_path / "m.pt", Net())
    fxprune.save(loaded, tmp_path / "n.pt")
    assert torch.equal(fxprune.load(tmp_path / "n.pt", Net())(IMAGE), loaded(IMAGE))


def test_the_precision_may_change_between_gating_and_saving(tmp_path: Path) -> None:
    gated = fxprune.auto_gate(Net().double(), IMAGE.double()).float()
    fxprune.save(gated.compact(), tmp_path / "m.pt")
    loaded = fxprune.load(tmp_path / "m.pt", Net()).eval()
    assert torch.equal(loaded(IMAGE), gated.eval()(IMAGE))


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    fxprune.save(fxprune.prune(Net(), IMAGE, params=0.5), tmp_path / "m.pt")
    with pytest.raises(LoadError, match=r"another architecture[\s\S]*'a' has 24 units here and 16"):
        fxprune.load(tmp_path / "m.pt", Net(24))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "damaged"),
        (b"not a torch file", "damaged"),
        ({"state_dict": {}}, "not written by fxprune.save"),
        ({"fxprune": "{}", "state_dict": {}}, "not written by fxprune.save"),
        ({"fxprune": f'{{"format": {FORMAT + 1}}}', "state_dict": {}}, "newer than"),
        ([1, 2], "not written by fxprune.save"),
    ],
)
def test_damaged_and_foreign_files(tmp_path: Path, content: object, match: str) -> None:
    path = tmp_path / "m.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(LoadError, match=match):
        fxprune.load(path, Net())


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    fxprune.save(fxprune.prune(Net(), IMAGE, params=0.5), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(LoadError, match="damaged"):
        fxprune.load(path, Net())


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="There is no file"):
        fxprune.load(tmp_path / "m.pt", Net())


def test_only_what_fxprune_made_can_be_saved(tmp_path: Path) -> None:
    for model in (Net(), torch.fx.symbolic_trace(nn.ReLU())):
        with pytest.raises(ConfigError, match="Only a compact model that fxprune made"):
            fxprune.save(model, tmp_path / "m.pt")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    compact = fxprune.prune(Net(), IMAGE, params=0.5)
    with pytest.raises(ConfigError, match="is a directory"):
        fxprune.save(compact, tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        fxprune.save(compact, tmp_path / "no" / "m.pt")


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text(str(1 / len(temporary.read_text())))
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_are_readable_as_others_are(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_recipe_round_trip() -> None:
    compact = fxprune.prune(Net(), (IMAGE, torch.ones(1)), params=0.5)
    recipe = Recipe.parse(compact.meta["fxprune_recipe"])
    assert [tuple(t.shape) for t in recipe.inputs[0]] == [(2, 3, 8, 8), (1,)]
    assert list(recipe.keep) == ["a"]
    assert recipe.keep["a"].dtype is torch.bool
