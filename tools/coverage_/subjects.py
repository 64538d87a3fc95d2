"""The models of the sweep: how each is built small, and the inputs it is tried with.

Inputs are the smallest that a model takes, with a batch of two: what is asked is whether graphs are
followed, not how large their images are. Nothing keeps a default value that would hide an error:
weights, scales, biases, running statistics are random, drawn so that rounding errors stay small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from fxprune.errors import ConfigError

__all__ = ["Subject", "all_names", "randomise", "subject"]

_IMAGE = (2, 3, 64, 64)
_CLIP = (2, 3, 8, 64, 64)
_TIMM = "timm:"
_TIMM_SIDES = (64, 128)
_SEED = 0
# Share of its input's variance that a layer hands on. The heads of detectors have no norms, and
# boxes enlarge their rounding errors.
_GAIN = 1.0
_CALM_GAIN = 0.3


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, and inputs for it.

    Attributes
    ----------
    name : str
        Of torchvision, or ``timm:NAME``.
    options : dict
        For its builder.
    shapes : tuple of tuple of int
        Of the tensors it is given.
    listed : bool
        Whether it takes these tensors in one list, as detectors do, and not one by one.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    shapes: tuple[tuple[int, ...], ...] = (_IMAGE,)
    listed: bool = False

    def build(self) -> nn.Module:
        """Return the model with random weights, the same at every call, in eval mode."""
        with torch.random.fork_rng(devices=[]), _no_initialisation():
            torch.manual_seed(_SEED)
            if self.name.startswith(_TIMM):
                model = _from_timm(self.name, self.options)
            else:
                options = self.options | _weightless(self.name)
                model = torchvision.models.get_model(self.name, **options)
        return model.eval()

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        """Return example inputs, the same at every call."""
        generator = torch.Generator().manual_seed(_SEED)
        draw = torch.rand if self.listed else torch.randn  # detectors normalise images in [0, 1]
        tensors = [draw(shape, generator=generator).to(dtype) for shape in self.shapes]
        return (tensors,) if self.listed else tuple(tensors)


# The first part of a name that fits says how to build it and what it reads.
_KINDS: Mapping[str, tuple[Mapping[str, Any], tuple[tuple[int, ...], ...]]] = {
    "quantized_inception": ({"quantize": False, "init_weights": False}, ((2, 3, 299, 299),)),
    "quantized_googlenet": ({"quantize": False, "init_weights": False}, (_IMAGE,)),
    "quantized_": ({"quantize": False}, (_IMAGE,)),
    # In training its auxiliary head needs a map of 17 x 17.
    "inception": ({"init_weights": False}, ((2, 3, 299, 299),)),
    "googlenet": ({"init_weights": False}, (_IMAGE,)),
    "vit_h_14": ({"image_size": 56}, ((2, 3, 56, 56),)),
    "vit": ({"image_size": 64}, (_IMAGE,)),
    "maxvit": ({}, ((2, 3, 224, 224),)),  # its partitions of 7 fit no smaller size at all stages
    "swin3d": ({}, (_CLIP,)),
    "mvit": ({}, ((2, 3, 16, 224, 224),)),  # its builders take no other size
    # S3D ends in a 2 x 7 x 7 average pool: the smallest clip that leaves it so much.
    "s3d": ({}, ((2, 3, 13, 209, 209),)),
    "r3d": ({}, ((2, 3, 8, 32, 32),)),
    "mc3": ({}, ((2, 3, 8, 32, 32),)),
    "r2plus1d": ({}, ((2, 3, 8, 32, 32),)),
    "raft": ({}, ((2, 3, 128, 128),) * 2),
}
# Detectors resize what they get, to 800 pixels and more by default; the SSDs to what is in a name.
# Their heads see every box: few are enough, and all are kept, so that something is always found.
_FEW = {
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 40,
    "box_detections_per_img": 20,
    "box_score_thresh": 0.0,
}
_DENSE = {"score_thresh": 0.0, "detections_per_img": 20, "topk_candidates": 30}
_SMALL = {"min_size": 128, "max_size": 160}
_DETECTORS: Mapping[str, Mapping[str, Any]] = {
    "rcnn": {**_SMALL, **_FEW},
    "retinanet": {**_SMALL, **_DENSE},
    "fcos": {**_SMALL, **_DENSE},
    "ssd": _DENSE,
}


def subject(name: str) -> Subject:
    """Return what is tried under a name.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    if name.startswith(_TIMM):
        return _smallest(name)
    if name not in torchvision.models.list_models():
        raise ConfigError(f"There is no {name!r} in torchvision.", hint="timm's are timm:NAME")
    for part, options in _DETECTORS.items():
        if part in name:
            return Subject(name, dict(options), ((3, 128, 160), (3, 112, 128)), listed=True)
    for start, (given, shapes) in _KINDS.items():
        if name.startswith(start):
            return Subject(name, dict(given), shapes)
    return Subject(name)


def all_names(extra: Iterable[str] = ()) -> list[str]:
    """Return the names of all of torchvision's models, and further ones."""
    return [*torchvision.models.list_models(), *extra]


def _weightless(name: str) -> dict[str, Any]:
    """Return the options that keep weights from being downloaded."""
    import inspect

    builder = torchvision.models.get_model_builder(name)
    known = inspect.signature(builder).parameters
    return {key: None for key in ("weights", "weights_backbone") if key in known}


def _from_timm(name: str, options: Mapping[str, Any]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name.removeprefix(_TIMM), pretrained=False, **options)
    return model


def _smallest(name: str) -> Subject:
    """Return the smallest of a few image sizes that a model of timm runs on, or else its own.

    Where the size is fixed, the model is built for it, if it can be.
    """
    own = Subject(name).build()
    channels, *_, largest = getattr(own, "pretrained_cfg", {}).get("input_size", (3, 224))
    for side in _TIMM_SIDES:
        shape = (2, channels, side, side)
        if side >= largest:
            break
        if _runs(lambda: own, shape):
            return Subject(name, shapes=(shape,))
        fixed = Subject(name, {"img_size": side}, (shape,))
        if _runs(fixed.build, shape):
            return fixed
    return Subject(name, shapes=((2, channels, largest, largest),))


def _runs(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            build().eval()(torch.zeros(shape))
    except Exception:  # noqa: BLE001  # that it fails is the answer
        return False
    return True


@contextmanager
def _no_initialisation() -> Iterator[None]:
    """Build without drawing weights twice: `randomise` draws them all."""
    names = ("normal_", "uniform_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_")
    saved = {name: getattr(nn.init, name) for name in (*names, "xavier_uniform_", "orthogonal_")}
    for name in saved:
        setattr(nn.init, name, lambda tensor, *_, **__: tensor)
    try:
        yield
    finally:
        for name, function in saved.items():
            setattr(nn.init, name, function)


# -- weights
def randomise(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Draw every parameter and every running statistic anew, in place.

    BatchNorm's statistics are taken from these inputs and then disturbed, so that deep residual
    nets neither overflow nor saturate.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        gain = _CALM_GAIN if isinstance(inputs[0], list) else _GAIN
        for name, parameter in model.named_parameters():
            _draw(name.rpartition(".")[2], parameter, gain)
        norms = [m for m in model.modules() if _has_statistics(m)]
        for norm in norms:
            for name, buffer in norm.named_buffers(recurse=False):
                if name in ("weight", "bias"):  # of a norm that is frozen
                    _draw(name, buffer, gain)
        handles = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
        try:
            model(*inputs)
        finally:
            for handle in handles:
                handle.remove()


def _draw(leaf: str, parameter: Tensor, gain: float) -> None:
    rows = parameter.shape[0] if parameter.dim() else 1
    if "bias" in leaf and parameter.dim() < 2:
        # Most activations are on then: where half are off, each layer enlarges rounding errors, and
        # those of a deep net in float32 would hide any other.
        parameter.normal_(0.5, 0.5)
    elif parameter.numel() == rows:  # scales, of norms and of layers
        parameter.uniform_(0.5, 1.5)
    elif rows == 1:  # embeddings of positions, class tokens
        parameter.normal_(0, 0.2)
    else:
        parameter.normal_(0, (gain * rows / parameter.numel()) ** 0.5)


def _has_statistics(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm, one of torch's or one with the same buffers."""
    found = (module._buffers.get(name) for name in ("running_mean", "running_var"))
    return all(buffer is not None for buffer in found)


def _take_statistics(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    x, mean, variance = inputs[0], norm.running_mean, norm.running_var
    dims = [dim for dim in range(x.dim()) if dim != 1]
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return
    mean.copy_(x.mean(dims))
    variance.copy_(x.var(dims, correction=0).clamp_(min=0.01))
    mean.add_(variance.sqrt() * torch.randn_like(mean), alpha=0.2)
    variance.mul_(torch.empty_like(variance).uniform_(0.5, 1.5))
