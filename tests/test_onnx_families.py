"""One compact model of every family goes to ONNX and agrees with onnxruntime at batch 1 and 5."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_zoo import MODELS, build, half_masks

from fxprune.api import auto_gate
from fxprune.export import export_onnx

# name, and whether its export takes long enough to be left to --runslow
FAMILIES = {
    "alexnet": False,
    "convnext_tiny": False,
    "deeplabv3_mobilenet_v3_large": True,
    "densenet121": True,
    "efficientnet_b0": True,
    "efficientnet_v2_s": True,
    "fcn_resnet50": True,
    "googlenet": True,
    "inception_v3": True,
    "lraspp_mobilenet_v3_large": True,
    "mc3_18": True,
    "mnasnet0_5": False,
    "mobilenet_v2": False,
    "mobilenet_v3_small": False,
    "quantized_mobilenet_v2": True,
    "quantized_resnet18": False,
    "r2plus1d_18": True,
    "r3d_18": True,
    "regnet_x_400mf": True,
    "regnet_y_400mf": False,
    "resnet18": False,
    "resnext50_32x4d": True,
    "s3d": True,
    "shufflenet_v2_x0_5": False,
    "squeezenet1_1": False,
    "vgg11_bn": False,
    "wide_resnet50_2": True,
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * slow) for n, slow in FAMILIES.items()]
)
def test_family(name: str, tmp_path: Path) -> None:
    gated = auto_gate(build(name, torch.float32).eval())
    gated.set_keep(half_masks(gated))
    compact = gated.compact()
    x = torch.randn((5, *MODELS[name].shape[1:]))
    exported = export_onnx(compact, tmp_path / f"{name}.onnx", x)
    assert exported.batches == (5, 1)
    assert exported.max_rel_error < 1e-4
    assert (tmp_path / f"{name}.onnx").stat().st_size < 5 * gated.cost().params + 2_000_000
