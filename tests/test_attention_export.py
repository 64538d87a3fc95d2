"""Pruned attention leaves for ONNX and for a file, and comes back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer

import fxprune


def vit() -> nn.Module:
    net = VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        mlp_dim=64,
        num_classes=10,
    )
    nn.init.normal_(net.heads.head.weight)  # torchvision starts with zeros: any two would agree
    return net


def swin() -> nn.Module:
    return SwinTransformer(
        patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4],
        num_classes=10, stochastic_depth_prob=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("make", "size"), [(vit, 32), (swin, 64)])
def test_half_of_it(make: Callable[[], nn.Module], size: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(2, 3, size, size)
    gated = fxprune.auto_gate(net, x)
    assert {group.kind for group in gated.groups} == {"channel", "head", "head_dim"}
    assert fxprune.select(gated, macs=0.5).met
    compact = gated.compact()
    assert not torch.allclose(compact(x), net(x), atol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = fxprune.export_onnx(compact, tmp_path / "m.onnx", x)
    assert exported.batches == (2, 1)
    fxprune.save(compact, tmp_path / "m.pt")
    again = fxprune.load(tmp_path / "m.pt", make()).eval()
    torch.testing.assert_close(again(x), compact(x), rtol=0, atol=0)
