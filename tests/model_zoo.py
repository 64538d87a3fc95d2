"""torchvision's convolutional models: how to build each one, and what is expected of it.

`MODELS` has one row for every name in `torchvision.models.list_models()` outside `EXCLUDED`. Its
two shares were measured with `tools/zoo_table.py` and may only get better: `share` may rise, `half`
may fall.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fxprune.gated import GatedModule

__all__ = [
    "EXCLUDED",
    "MODELS",
    "TORCH_PRUNING",
    "ZooEntry",
    "build",
    "example",
    "half_masks",
    "names",
    "prunable_share",
    "randomise",
]

Shape = tuple[int, ...]

# Attention models, optical flow and detectors: not convolutional classification or segmentation.
EXCLUDED = ("vit", "swin", "mvit", "raft", "rcnn", "retinanet", "fcos", "ssd")

# The last stage keeps 2 x 2 positions: BatchNorm over two values returns signs, which hides errors.
IMAGE = (2, 3, 64, 64)
CLIP = (2, 3, 8, 32, 32)
# S3D ends in a 2 x 7 x 7 average pool: the smallest clip that leaves it so much.
S3D = (2, 3, 13, 209, 209)
INCEPTION = (2, 3, 139, 139)
# The auxiliary head, used in train mode only, needs 17 x 17 positions.
INCEPTION_TRAIN = (2, 3, 299, 299)
# What auto_gate guesses for images and clips, where its costs are counted.
COSTED = (1, 3, 224, 224)
CLIP_COSTED = (1, 3, 16, 112, 112)
S3D_COSTED = (1, 3, 16, 224, 224)
INCEPTION_COSTED = (1, 3, 299, 299)


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """One model of the zoo.

    Attributes
    ----------
    shape : tuple[int, ...]
        A small input with a batch of 2 or more.
    share : float
        Least share of the parameters that has a prunable axis.
    half : float
        Most of the parameters that may be left when half of every group is kept.
    slow : bool
        Whether the tests need ``--runslow``.
    train_shape : tuple[int, ...], optional
        Input for train mode, where it must be larger.
    costed : tuple[int, ...]
        The input that auto_gate guesses.
    """

    shape: Shape
    share: float
    half: float
    slow: bool = False
    train_shape: Shape | None = None
    costed: Shape = COSTED

    def input_shape(self, training: bool) -> Shape:
        """Return the input shape for a mode."""
        return self.train_shape if training and self.train_shape else self.shape


MODELS: dict[str, ZooEntry] = {
    "alexnet": ZooEntry(IMAGE, 0.999, 0.267),
    "convnext_base": ZooEntry(IMAGE, 0.999, 0.256, slow=True),
    "convnext_large": ZooEntry(IMAGE, 0.999, 0.254, slow=True),
    "convnext_small": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "convnext_tiny": ZooEntry(IMAGE, 0.999, 0.261),
    "deeplabv3_mobilenet_v3_large": ZooEntry(IMAGE, 0.999, 0.253),
    "deeplabv3_resnet101": ZooEntry(IMAGE, 0.999, 0.251, slow=True),
    "deeplabv3_resnet50": ZooEntry(IMAGE, 0.999, 0.251),
    "densenet121": ZooEntry(IMAGE, 0.999, 0.286),
    "densenet161": ZooEntry(IMAGE, 0.999, 0.272, slow=True),
    "densenet169": ZooEntry(IMAGE, 0.999, 0.283, slow=True),
    "densenet201": ZooEntry(IMAGE, 0.999, 0.277, slow=True),
    "efficientnet_b0": ZooEntry(IMAGE, 0.999, 0.322),
    "efficientnet_b1": ZooEntry(IMAGE, 0.999, 0.302, slow=True),
    "efficientnet_b2": ZooEntry(IMAGE, 0.999, 0.299, slow=True),
    "efficientnet_b3": ZooEntry(IMAGE, 0.999, 0.292, slow=True),
    "efficientnet_b4": ZooEntry(IMAGE, 0.999, 0.283, slow=True),
    "efficientnet_b5": ZooEntry(IMAGE, 0.999, 0.275, slow=True),
    "efficientnet_b6": ZooEntry(IMAGE, 0.999, 0.271, slow=True),
    "efficientnet_b7": ZooEntry(IMAGE, 0.999, 0.267, slow=True),
    "efficientnet_v2_l": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "efficientnet_v2_m": ZooEntry(IMAGE, 0.999, 0.261, slow=True),
    "efficientnet_v2_s": ZooEntry(IMAGE, 0.999, 0.271),
    "fcn_resnet101": ZooEntry(IMAGE, 0.999, 0.251, slow=True),
    "fcn_resnet50": ZooEntry(IMAGE, 0.999, 0.251),
    "googlenet": ZooEntry(IMAGE, 0.999, 0.310),
    "inception_v3": ZooEntry(
        INCEPTION, 0.999, 0.277, train_shape=INCEPTION_TRAIN, costed=INCEPTION_COSTED
    ),
    "lraspp_mobilenet_v3_large": ZooEntry(IMAGE, 0.999, 0.260),
    "mc3_18": ZooEntry(CLIP, 0.999, 0.256, costed=CLIP_COSTED),
    "mnasnet0_5": ZooEntry(IMAGE, 0.999, 0.407),
    "mnasnet0_75": ZooEntry(IMAGE, 0.999, 0.364, slow=True),
    "mnasnet1_0": ZooEntry(IMAGE, 0.999, 0.335),
    "mnasnet1_3": ZooEntry(IMAGE, 0.999, 0.312, slow=True),
    "mobilenet_v2": ZooEntry(IMAGE, 0.999, 0.349),
    "mobilenet_v3_large": ZooEntry(IMAGE, 0.999, 0.315),
    "mobilenet_v3_small": ZooEntry(IMAGE, 0.999, 0.359),
    "quantized_googlenet": ZooEntry(IMAGE, 0.999, 0.310),
    "quantized_inception_v3": ZooEntry(
        INCEPTION, 0.999, 0.277, train_shape=INCEPTION_TRAIN, costed=INCEPTION_COSTED, slow=True
    ),
    "quantized_mobilenet_v2": ZooEntry(IMAGE, 0.999, 0.349),
    "quantized_mobilenet_v3_large": ZooEntry(IMAGE, 0.999, 0.315),
    "quantized_resnet18": ZooEntry(IMAGE, 0.999, 0.262),
    "quantized_resnet50": ZooEntry(IMAGE, 0.999, 0.271, slow=True),
    "quantized_resnext101_32x8d": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "quantized_resnext101_64x4d": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "quantized_shufflenet_v2_x0_5": ZooEntry(IMAGE, 0.999, 0.442),
    "quantized_shufflenet_v2_x1_0": ZooEntry(IMAGE, 0.999, 0.369, slow=True),
    "quantized_shufflenet_v2_x1_5": ZooEntry(IMAGE, 0.999, 0.328, slow=True),
    "quantized_shufflenet_v2_x2_0": ZooEntry(IMAGE, 0.999, 0.323, slow=True),
    "r2plus1d_18": ZooEntry(CLIP, 0.999, 0.252, costed=CLIP_COSTED),
    "r3d_18": ZooEntry(CLIP, 0.999, 0.252, costed=CLIP_COSTED),
    "regnet_x_16gf": ZooEntry(IMAGE, 0.999, 0.260, slow=True),
    "regnet_x_1_6gf": ZooEntry(IMAGE, 0.999, 0.277, slow=True),
    "regnet_x_32gf": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "regnet_x_3_2gf": ZooEntry(IMAGE, 0.999, 0.268, slow=True),
    "regnet_x_400mf": ZooEntry(IMAGE, 0.999, 0.271),
    "regnet_x_800mf": ZooEntry(IMAGE, 0.999, 0.275, slow=True),
    "regnet_x_8gf": ZooEntry(IMAGE, 0.999, 0.263, slow=True),
    "regnet_y_128gf": ZooEntry(IMAGE, 0.999, 0.254, slow=True),
    "regnet_y_16gf": ZooEntry(IMAGE, 0.999, 0.260, slow=True),
    "regnet_y_1_6gf": ZooEntry(IMAGE, 0.999, 0.272, slow=True),
    "regnet_y_32gf": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "regnet_y_3_2gf": ZooEntry(IMAGE, 0.999, 0.271, slow=True),
    "regnet_y_400mf": ZooEntry(IMAGE, 0.999, 0.278),
    "regnet_y_800mf": ZooEntry(IMAGE, 0.999, 0.283, slow=True),
    "regnet_y_8gf": ZooEntry(IMAGE, 0.999, 0.264, slow=True),
    "resnet101": ZooEntry(IMAGE, 0.999, 0.263, slow=True),
    "resnet152": ZooEntry(IMAGE, 0.999, 0.260, slow=True),
    "resnet18": ZooEntry(IMAGE, 0.999, 0.262),
    "resnet34": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "resnet50": ZooEntry(IMAGE, 0.999, 0.271),
    "resnext101_32x8d": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "resnext101_64x4d": ZooEntry(IMAGE, 0.999, 0.257, slow=True),
    "resnext50_32x4d": ZooEntry(IMAGE, 0.999, 0.272),
    "s3d": ZooEntry(S3D, 0.999, 0.264, costed=S3D_COSTED),
    "shufflenet_v2_x0_5": ZooEntry(IMAGE, 0.999, 0.442),
    "shufflenet_v2_x1_0": ZooEntry(IMAGE, 0.999, 0.369),
    "shufflenet_v2_x1_5": ZooEntry(IMAGE, 0.999, 0.328, slow=True),
    "shufflenet_v2_x2_0": ZooEntry(IMAGE, 0.999, 0.323, slow=True),
    "squeezenet1_0": ZooEntry(IMAGE, 0.999, 0.357),
    "squeezenet1_1": ZooEntry(IMAGE, 0.999, 0.356),
    "vgg11": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "vgg11_bn": ZooEntry(IMAGE, 0.999, 0.258),
    "vgg13": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "vgg13_bn": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "vgg16": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "vgg16_bn": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "vgg19": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "vgg19_bn": ZooEntry(IMAGE, 0.999, 0.258, slow=True),
    "wide_resnet101_2": ZooEntry(IMAGE, 0.999, 0.255, slow=True),
    "wide_resnet50_2": ZooEntry(IMAGE, 0.999, 0.258),
}

# torch-pruning 1.6.1 at ratio 0.5 with the classifier ignored: share of the parameters kept.
TORCH_PRUNING = {
    "alexnet": 0.267,
    "vgg11_bn": 0.258,
    "resnet18": 0.261,
    "resnet50": 0.271,
    "densenet121": 0.285,
    "mobilenet_v2": 0.349,
    "mobilenet_v3_large": 0.314,
    "mnasnet1_0": 0.335,
    "efficientnet_b0": 0.322,
    "regnet_y_400mf": 0.277,
    "convnext_tiny": 0.260,
    "inception_v3": 0.361,
    "squeezenet1_0": 0.357,
    "r3d_18": 0.252,
    "deeplabv3_resnet50": 0.251,
}


def names() -> list[str]:
    """List what torchvision offers, less what is excluded."""
    offered = torchvision.models.list_models()
    return [name for name in offered if not any(part in name for part in EXCLUDED)]


def build(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """Build a model with random weights, the same at every call, in eval mode.

    Parameters
    ----------
    name : str
        A key of `MODELS`.
    dtype : torch.dtype
    **options
        Passed on to torchvision.

    Notes
    -----
    Nothing keeps a default that would hide an error: weights are drawn so that activations keep
    their size, every bias, scale and running statistic is random. BatchNorm's statistics are taken
    from a batch and then disturbed, so that deep residual nets neither overflow nor saturate.
    """
    for part, option in _OPTIONS.items():
        if part in name:
            options = {**option, **options}
    entry = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None, **options).to(dtype)
        randomise(model, torch.randn(entry.input_shape(training=True), dtype=dtype))
    return model.eval()


def randomise(model: nn.Module, x: Tensor) -> None:
    """Draw every parameter and running statistic of a model that takes `x` anew, see `build`."""
    with torch.no_grad():
        for module in model.modules():
            _draw(module)
        _calibrate(model, x)


# init_weights=False: drawn anew here, and leaving it out makes torchvision warn.
_OPTIONS: dict[str, dict[str, Any]] = {
    "quantized_": {"quantize": False},
    "googlenet": {"init_weights": False},
    "inception": {"init_weights": False},
    "fcn": {"weights_backbone": None},
    "deeplab": {"weights_backbone": None},
    "lraspp": {"weights_backbone": None},
}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _draw(module: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if name == "bias":
            parameter.normal_(0, 0.2)
        elif isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5)
        else:  # the scales of norms, and ConvNeXt's layer scale
            parameter.uniform_(0.5, 1.5)


def _calibrate(model: nn.Module, x: Tensor) -> None:
    norms = [module for module in model.modules() if isinstance(module, _BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        model.train()(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        mean, variance = norm.running_mean, norm.running_var
        if mean is None or variance is None:
            continue
        variance.clamp_(min=0.01)
        mean.add_(variance.sqrt() * torch.randn_like(mean), alpha=0.2)
        variance.mul_(torch.empty_like(variance).uniform_(0.5, 1.5))


def example(name: str, training: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return an input for a mode, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(MODELS[name].input_shape(training), generator=generator, dtype=dtype)


def half_masks(gated: GatedModule) -> dict[str, Tensor]:
    """Return masks that remove half of every group, rounded down as torch-pruning does."""
    return {g.name: torch.arange(g.size) < g.size - g.size // 2 for g in gated.groups}


def prunable_share(model: nn.Module, gated: GatedModule) -> float:
    """Return the share of a model's parameters that has an axis with a group."""
    prunable = {member.fqn for group in gated.groups for member in group.members}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(size for name, size in sizes.items() if name in prunable) / sum(sizes.values())
