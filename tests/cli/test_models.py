"""Models by name, and where they come from."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from fxprune.cli import models
from fxprune.errors import ConfigError, LoadError

SHAPE = ["--input", "1,3,8,8"]
SMALL = "fxprune_test_nets:small"


# -- models ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("resnet81", "no 'resnet81' in torchvision", "resnet18"),
        ("zzzzzzzz", "no 'zzzzzzzz' in torchvision", "MODEL is a torchvision name"),
        ("fxprune_test_nets:smal", "no 'smal' in fxprune_test_nets", "small"),
        ("fxprune_test_absent:net", "no Python module 'fxprune_test_absent'", "install it"),
        ("fxprune_test_absent.sub:net", "no Python module", "install it"),
        (":net", "no complete name", "factory"),
        ("fxprune_test_nets:", "no complete name", "factory"),
        ("fxprune_test_nets:broken", "cannot be built", "without arguments"),
        ("fxprune_test_nets:NOT_A_MODEL", "not a torch.nn.Module", "without arguments"),
    ],
)
def test_models_that_cannot_be_had(name, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        models.build_model(name)
    assert hint in caught.value.hint


def test_modules_that_fail_to_import_say_why(here):
    (here / "fxprune_test_missing.py").write_text("import fxprune_test_nowhere\n")
    (here / "fxprune_test_failing.py").write_text("1 / 0\n")
    for name, seen in (("missing", "fxprune_test_nowhere"), ("failing", "ZeroDivisionError")):
        with pytest.raises(ConfigError, match="cannot be imported") as caught:
            models.build_model(f"fxprune_test_{name}:net")
        assert seen in caught.value.seen


def test_packages_of_the_current_directory_are_found(here):
    (here / "fxprune_test_package").mkdir()
    (here / "fxprune_test_package" / "nets.py").write_text(
        "from torch import nn\nclass Nets:\n    line = staticmethod(lambda: nn.Linear(2, 1))\n"
    )
    finders = list(sys.meta_path)
    model = models.build_model("fxprune_test_package.nets:Nets.line")
    assert isinstance(model, nn.Linear)
    assert not model.training
    assert sys.meta_path == finders


def test_torchvision_names_build():
    assert type(models.build_model("squeezenet1_1")).__name__ == "SqueezeNet"
    assert models.build_model("resnet18", num_classes=7).fc.out_features == 7


def test_building_a_detector_downloads_nothing(monkeypatch):
    def download(*args, **kwargs):
        pytest.fail("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    model = models.build_model("ssdlite320_mobilenet_v3_large")
    assert type(model).__name__ == "SSD"


def test_timm_names_build(monkeypatch):
    timm = ModuleType("timm")
    timm.list_models = lambda: ["tiny_net"]
    timm.create_model = lambda name, pretrained, num_classes=1: nn.Linear(
        2, 3 if pretrained else num_classes
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert models.build_model("timm:tiny_net").out_features == 1
    assert models.build_model("timm:tiny_net", num_classes=5).out_features == 5
    assert models.build_model("timm:tiny_net.a1", "DEFAULT").out_features == 3
    with pytest.raises(ConfigError, match="no 'tiny_nut' in timm"):
        models.build_model("timm:tiny_nut")
    with pytest.raises(ConfigError, match="neither a file nor known by name"):
        models.build_model("timm:tiny_net", "a1_in1k")


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'fxprune\[timm\]'"):
        models.build_model("timm:resnet18")


def test_weights_come_from_a_file(here):
    state = models.build_model(SMALL).state_dict()
    state["0.bias"] = torch.arange(8.0)
    torch.save(state, here / "weights.pt")
    model = models.build_model(SMALL, "weights.pt")
    assert torch.equal(model.get_parameter("0.bias"), torch.arange(8.0))


def test_weights_must_fit(here):
    torch.save({"other": torch.zeros(1)}, here / "weights.pt")
    with pytest.raises(LoadError, match="cannot be loaded into the model"):
        models.build_model(SMALL, "weights.pt")
    with pytest.raises(ConfigError, match="neither a file nor known by name"):
        models.build_model(SMALL, "absent.pt")
    with pytest.raises(ConfigError, match="cannot be built") as caught:
        models.build_model("resnet18", "NO_SUCH_WEIGHTS")
    assert "--weights" in caught.value.hint
