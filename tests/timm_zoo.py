"""timm's families: how to build each small and random, and the share that must stay prunable.

A share was measured and may only rise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from model_zoo import randomise
from torch import Tensor, nn

__all__ = ["FAMILIES", "TimmEntry", "build"]


@dataclass(frozen=True, slots=True)
class TimmEntry:
    """One model.

    Attributes
    ----------
    share : float
        Least share of the parameters that has a prunable axis.
    size : int
        Height and width of the image.
    slow : bool
        Whether the test needs ``--runslow``.
    options : dict
        Passed on to timm: what makes a model take small images.
    """

    share: float
    size: int = 64
    slow: bool = True
    options: dict[str, Any] = field(default_factory=dict)


_SMALL = {"img_size": 64}
FAMILIES: dict[str, TimmEntry] = {
    "resnet26d": TimmEntry(0.999, slow=False),
    "resnetv2_50": TimmEntry(0.999),
    "seresnext26d_32x4d": TimmEntry(0.999),
    "res2net50_26w_4s": TimmEntry(0.999),
    "dla34": TimmEntry(0.999),
    "hrnet_w18_small": TimmEntry(0.999),
    "ghostnet_100": TimmEntry(0.999),
    "mobileone_s0": TimmEntry(0.999),
    "repvgg_a0": TimmEntry(0.999),
    "efficientnet_lite0": TimmEntry(0.999),
    "mobilenetv4_conv_small": TimmEntry(0.999, slow=False),
    "convnextv2_atto": TimmEntry(0.993, slow=False),
    "edgenext_xx_small": TimmEntry(0.998, slow=False),
    "vit_tiny_patch16_224": TimmEntry(0.998, options=_SMALL),
    "deit_tiny_distilled_patch16_224": TimmEntry(0.998, options=_SMALL),
    "swin_tiny_patch4_window7_224": TimmEntry(0.999, options=_SMALL),
    "mixer_s32_224": TimmEntry(0.999, options=_SMALL),
    "mobilevit_s": TimmEntry(0.999),
    "poolformer_s12": TimmEntry(0.999),
    "levit_128": TimmEntry(0.999, options=_SMALL),
    "convit_tiny": TimmEntry(0.999, options=_SMALL),
    "dpn68": TimmEntry(0.999),
    "eca_resnext26ts": TimmEntry(0.999),
    "gcresnext26ts": TimmEntry(0.999),
    "gmlp_ti16_224": TimmEntry(0.998, options=_SMALL),
    "inception_next_atto": TimmEntry(0.999),
    "lambda_resnet26t": TimmEntry(0.999, size=128),
    "mambaout_femto": TimmEntry(0.999),
    "nf_resnet26": TimmEntry(0.999),
    "mixnet_s": TimmEntry(0.999),
    "resmlp_12_224": TimmEntry(0.999, options=_SMALL),
    "resnest14d": TimmEntry(0.999),
    "resnetblur18": TimmEntry(0.999),
    "rexnet_100": TimmEntry(0.999),
    "sebotnet33ts_256": TimmEntry(0.999, options={"img_size": 128}, size=128),
    "selecsls42": TimmEntry(0.999),
    "skresnet18": TimmEntry(0.999),
    "starnet_s050": TimmEntry(0.998),
    "tresnet_m": TimmEntry(0.999),
    "xception41": TimmEntry(0.999),
    "cait_xxs24_224": TimmEntry(0.999, options=_SMALL),
    "coat_lite_tiny": TimmEntry(0.999, options=_SMALL),
    "csatv2": TimmEntry(0.999),
    "efficientvim_m1": TimmEntry(0.998),
    "halonet26t": TimmEntry(0.999, size=256),
    "mobilevitv2_050": TimmEntry(0.999),
    "mvitv2_tiny": TimmEntry(0.999),
    "nf_regnet_b0": TimmEntry(0.999),
    "sequencer2d_s": TimmEntry(0.999),
    "swinv2_tiny_window8_256": TimmEntry(0.999, options=_SMALL),
    "test_maxvit": TimmEntry(0.999, options=_SMALL),
    "test_vit_relpos": TimmEntry(0.998, options=_SMALL),
    "tiny_vit_5m_224": TimmEntry(0.998),
    "twins_svt_small": TimmEntry(0.999),
    "xcit_nano_12_p16_224": TimmEntry(0.999),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Build a model with random weights in float64, in eval mode, and a batch for it."""
    import timm

    entry = FAMILIES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, **entry.options).double()
        x = torch.randn(2, 3, entry.size, entry.size, dtype=torch.float64)
        randomise(model, x)
    return model.eval(), x
