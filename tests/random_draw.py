"""What the random test networks are drawn with: the seeded source, shapes, the base of all blocks.

A block maps a tensor (N, C, *size) to (N, out_channels, *size'); size has one, two or three axes.
What a block drew is in its ``note`` (shown by ``repr``). Every feature it stands for is reported to
`Draw.use`, so that a test can tell whether the fuzzing reaches all that it claims to reach.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

FEATURES = frozenset(
    """
    net_1d net_2d net_3d conv1x1 conv3x3 conv_stride conv_unpadded conv_dilated conv_asymmetric
    conv_padding_mode conv_bias conv_no_bias batchnorm batchnorm_no_affine no_norm
    act_relu act_silu act_sigmoid act_softplus act_hardswish act_gelu act_tanh
    act_prelu_1 act_prelu_c act_module act_function act_method act_inplace
    residual_identity residual_projected residual_inplace concat_2 concat_3 concat_identity
    split_chunk split_int split_sizes split_slice split_strided split_overlap split_narrow
    split_then_cat split_then_add split_passthrough shuffle_size shuffle_minus1 shuffle_literal
    shared_conv shared_bn shared_conv_two_inputs shared_block fan_out_3
    grouped_conv grouped_conv_multiplier depthwise_1 depthwise_2
    transposed_dense transposed_grouped transposed_depthwise
    se_conv se_linear_view se_linear_unsqueeze spatial_attention softmax_channels
    pool_max pool_avg pool_adaptive upsample_interpolate upsample_module pixel_shuffle
    layernorm_module layernorm_function groupnorm instancenorm
    layer_scale bias_map position_map raw_conv_weight raw_linear_weight
    gating_mul stack_sum where maximum clamp pad_channels pad_shortcut add_constant constant_buffer
    nhwc_linear long_skip input_reuse unused_module
    head_flatten head_gap head_mlp head_map output_tuple output_dict output_feature_map
    """.split()
)


class Shape(NamedTuple):
    """Shape of an activation without its batch axis."""

    channels: int
    size: tuple[int, ...]

    @property
    def can_shrink(self) -> bool:
        """Whether every spatial axis may be halved."""
        return min(self.size) >= 6

    @property
    def can_grow(self) -> bool:
        """Whether doubling every spatial axis stays cheap."""
        return math.prod(self.size) << len(self.size) <= 1024

    @property
    def groups(self) -> tuple[int, ...]:
        """The group counts a grouped convolution may have, neither dense nor depthwise."""
        return tuple(g for g in range(2, self.channels) if self.channels % g == 0)


class Draw:
    """One seeded source for the structure (``rng``) and the numbers (``generator``) of a network.

    Parameters
    ----------
    seed : int
        The only source of randomness.
    menu : sequence of Block classes
        What `block` chooses from, each in proportion to its ``share``.
    """

    def __init__(self, seed: int, menu: Sequence[type[Block]] = ()) -> None:
        self.menu = menu
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.features: set[str] = set()
        self.depth = 0
        self.dim = self.rng.choices((1, 2, 3), (0.12, 0.76, 0.12))[0]
        self.max_channels = 12 if self.dim == 3 else 24
        self.use(f"net_{self.dim}d")

    def use(self, *names: str) -> None:
        """Record features; a name outside `FEATURES` is a mistake in the generator."""
        unknown = set(names) - FEATURES
        if unknown:
            raise ValueError(f"unknown features: {sorted(unknown)}")
        self.features.update(names)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[self.rng.randrange(len(options))]

    def size(self) -> tuple[int, ...]:
        """Size of an image: 8 to 16 a side, 6 to 8 for volumes."""
        low, high = (6, 8) if self.dim == 3 else (8, 16)
        return tuple(self.rng.randint(low, high) for _ in range(self.dim))

    def channels(self, high: int | None = None, multiple_of: int = 1) -> int:
        """Draw a channel count between 4 and ``high`` that ``multiple_of`` divides."""
        high = max(4, self.max_channels if high is None else min(high, self.max_channels))
        options = [c for c in range(4, high + 1) if c % multiple_of == 0]
        return self.pick(options or [multiple_of])

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        noise = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return noise * std + mean

    def uniform(self, *shape: int, low: float, high: float) -> Tensor:
        noise = torch.rand(shape, generator=self.generator, dtype=torch.float64)
        return noise * (high - low) + low

    def block(self, shape: Shape, *, nested: bool = False) -> Block:
        """Draw a block that fits a tensor of this shape; a nested one keeps the size."""
        options = [b for b in self.menu if b.fits(self, shape) and (b.keeps_size or not nested)]
        kind = self.rng.choices(options, [b.share for b in options])[0]
        self.depth += 1
        block = kind(self, shape)
        self.depth -= 1
        return block


class Block(nn.Module):
    """Base of all blocks; see the module docstring."""

    out_channels: int
    share: ClassVar[float] = 1.0
    keeps_size: ClassVar[bool] = True
    note: str = ""

    if TYPE_CHECKING:

        def __init__(self, draw: Draw, shape: Shape) -> None: ...

        def __call__(self, *xs: Tensor) -> Tensor: ...

    @classmethod
    def fits(cls, draw: Draw, shape: Shape) -> bool:
        """Whether the block can be applied to a tensor of this shape."""
        return True

    def extra_repr(self) -> str:
        return self.note


def nd(name: str, dim: int) -> Any:
    """Return the layer class of torch.nn for ``dim`` spatial axes: ``nd("Conv", 2)`` is Conv2d."""
    return getattr(nn, f"{name}{dim}d")


CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
RUNNING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@torch.no_grad()
def randomise_(module: nn.Module, draw: Draw) -> None:
    """Draw all parameters and running statistics anew; a block draws its raw parameters itself."""
    for child in module.modules():
        own = dict(child.named_parameters(recurse=False))
        if isinstance(child, Block) or not (own or isinstance(child, RUNNING + INSTANCE)):
            continue
        if isinstance(child, (*CONVS, *TRANSPOSED, nn.Linear)):
            weight = own["weight"]
            fan_in = weight[0].numel()
            if isinstance(child, TRANSPOSED):
                kernel, stride = math.prod(child.kernel_size), math.prod(child.stride)
                fan_in = max(1, child.in_channels // child.groups * kernel // stride)
            weight.copy_(draw.normal(*weight.shape, std=1.2 / math.sqrt(fan_in)))
        elif isinstance(child, nn.PReLU):
            child.weight.copy_(draw.uniform(*child.weight.shape, low=-0.4, high=0.6))
        elif isinstance(child, (*RUNNING, *INSTANCE, nn.GroupNorm, nn.LayerNorm)):
            if "weight" in own:
                own["weight"].copy_(draw.uniform(*own["weight"].shape, low=0.4, high=1.6))
            if isinstance(child, RUNNING + INSTANCE) and child.running_mean is not None:
                child.running_mean.copy_(draw.normal(child.num_features, std=0.3))
                assert child.running_var is not None
                child.running_var.copy_(draw.uniform(child.num_features, low=0.4, high=1.6))
        else:
            raise TypeError(f"no rule to randomise {type(child).__name__}")
        if "bias" in own:
            own["bias"].copy_(draw.normal(*own["bias"].shape, std=0.4))
