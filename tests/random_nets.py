"""Random convolutional networks, drawn from a seed, to fuzz structured pruning with.

A network is a *program*: step k applies a block to one earlier value, or joins two or three, and
makes value k (value 0 is the input). Values that are used more than once give fan-out and skip
connections over any distance; what the blocks themselves contain is in random_convs, random_layers,
random_blocks and random_attention. `describe` prints the program of a seed that failed.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from random_attention import (
    BiasMap,
    ChannelShuffle,
    Clamp,
    Constant,
    PadChannels,
    SoftmaxChannels,
    SpatialAttention,
    SqueezeExcite,
)
from random_blocks import (
    MERGES,
    Branches,
    FanOut,
    Merge,
    PaddedResidual,
    Residual,
    ScaledResidual,
    Shared,
    Split,
)
from random_convs import (
    ConvUnit,
    DenseConv,
    DepthwiseConv,
    GroupedConv,
    RawConv,
    TransposedConv,
)
from random_draw import FEATURES, Block, Draw, Shape, randomise_
from random_heads import HEADS
from random_layers import (
    ChannelLayerNorm,
    ChannelsLastLinear,
    OtherNorm,
    PixelShuffle,
    Pool,
    RawLinear,
    Upsample,
)
from torch import Tensor, nn

__all__ = ["FEATURES", "RandomNet", "describe", "outputs", "random_net"]

BLOCKS: tuple[type[Block], ...] = (
    DenseConv,
    GroupedConv,
    DepthwiseConv,
    TransposedConv,
    RawConv,
    Pool,
    Upsample,
    PixelShuffle,
    OtherNorm,
    ChannelLayerNorm,
    ChannelsLastLinear,
    RawLinear,
    Branches,
    FanOut,
    Residual,
    ScaledResidual,
    PaddedResidual,
    Split,
    Shared,
    SqueezeExcite,
    SpatialAttention,
    SoftmaxChannels,
    BiasMap,
    Constant,
    Clamp,
    PadChannels,
    ChannelShuffle,
)


class Join(nn.Module):
    """Merges values of any shapes, after resizing to the first one's size and maybe projecting."""

    def __init__(self, draw: Draw, shapes: list[Shape]) -> None:
        super().__init__()
        kind = draw.pick(MERGES)
        count = len(shapes)
        width: int | None = shapes[0].channels
        if kind == "cat":
            fits = sum(shape.channels for shape in shapes) <= draw.max_channels
            width = None if fits else draw.max_channels // count
        self.project = nn.ModuleDict(
            {
                str(i): ConvUnit(draw, shape.channels, width, kernel=1)
                for i, shape in enumerate(shapes)
                if width is not None and shape.channels != width
            }
        )
        self.size = shapes[0].size
        self.resized = tuple(i for i, shape in enumerate(shapes) if shape.size != self.size)
        self.resize = draw.pick(("interpolate", "pool"))
        self.pool = f"adaptive_avg_pool{draw.dim}d"
        self.merge = Merge(draw, kind, count)

    def extra_repr(self) -> str:
        return f"resize {self.resized} by {self.resize}" if self.resized else ""

    def forward(self, *xs: Tensor) -> Tensor:
        aligned: list[Tensor] = []
        for i, x in enumerate(xs):
            if str(i) in self.project:
                x = self.project[str(i)](x)
            if i in self.resized and self.resize == "interpolate":
                x = F.interpolate(x, size=xs[0].shape[2:], mode="nearest")
            elif i in self.resized:
                x = getattr(F, self.pool)(x, self.size)
            aligned.append(x)
        y: Tensor = self.merge(*aligned)
        return y


class Step(nn.Module):
    """One line of the program: ``value = block(*sources) * scale``.

    The scale is a power of two that keeps values near 1, or 1, which is not multiplied at all.
    """

    def __init__(self, block: nn.Module, sources: tuple[int, ...]) -> None:
        super().__init__()
        self.block = block
        self.sources = sources
        self.scale = 1.0

    def forward(self, *xs: Tensor) -> Tensor:
        y: Tensor = self.block(*xs)
        return y if self.scale == 1.0 else y * self.scale


def listed(steps: nn.ModuleList) -> list[Step]:
    """Return the steps with their type, which a ModuleList forgets."""
    return cast("list[Step]", list(steps))


class RandomNet(nn.Module):
    """Interpreter of a random program.

    Attributes
    ----------
    features_used : frozenset of str
        Which of `FEATURES` the program contains.
    steps, heads : nn.ModuleList of Step
        The program, and what it ends with; each head makes one output.
    returned : tuple of int
        Values that are outputs just as they are.
    container : str
        "tensor", "tuple" or "dict": how outputs are returned.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.features_used: frozenset[str] = frozenset()
        self.steps = nn.ModuleList()
        self.heads = nn.ModuleList()
        self.returned: tuple[int, ...] = ()
        self.container = "tensor"
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in listed(self.steps):
            values.append(step(*[values[i] for i in step.sources]))
        results = [head(values[head.sources[0]]) for head in listed(self.heads)]
        results += [values[i] for i in self.returned]
        if self.container == "tensor":
            return results[0]
        if self.container == "tuple":
            return tuple(results)
        return {f"out{i}": result for i, result in enumerate(results)}


def outputs(result: Any) -> list[Tensor]:
    """List the tensors in what a `RandomNet` (or a rewrite of it) returned."""
    if isinstance(result, Tensor):
        return [result]
    return list(result.values()) if isinstance(result, dict) else list(result)


class Planner:
    """Draws a program step by step, running each on an example to know shapes and magnitudes."""

    def __init__(self, seed: int) -> None:
        self.draw = Draw(seed, BLOCKS)
        channels = self.draw.pick((1, 3, 3, 4))
        self.values = [self.draw.normal(2, channels, *self.draw.size())]
        self.net = RandomNet(seed)
        self.net.shapes.append(tuple(self.values[0].shape))
        self.unused: list[int] = []

    def shape(self, index: int) -> Shape:
        value = self.values[index]
        return Shape(value.size(1), tuple(value.shape[2:]))

    def prepare(self, step: Step, *, fresh: bool = True) -> Tensor:
        """Make a step float64 and random, run it, scale its output to a magnitude near 1."""
        step.double().eval()
        if fresh:
            randomise_(step, self.draw)
        with torch.no_grad():
            value: Tensor = step(*[self.values[i] for i in step.sources])
            size = value.square().mean().sqrt().item()
            if size > 0 and not 0.3 < size < 3:
                step.scale = 2.0 ** -round(math.log2(size))
                value = value * step.scale
        return value

    def add(self, block: nn.Module, *sources: int, fresh: bool = True) -> None:
        step = Step(block, sources)
        value = self.prepare(step, fresh=fresh)
        if isinstance(block, Block) and block.out_channels != value.size(1):
            raise ValueError(f"{block} made {value.size(1)} channels, not {block.out_channels}")
        self.net.steps.append(step)
        self.values.append(value)
        self.net.shapes.append(tuple(value.shape))
        self.unused = [i for i in self.unused if i not in sources] + [len(self.values) - 1]

    def join(self) -> None:
        """Merge the values nobody has used yet, or the last one with any earlier one."""
        draw = self.draw
        sources = self.unused[-3:]
        if len(sources) < 2:
            others = range(1, len(self.values) - 1)
            sources = [draw.pick(others), sources[0]]
            draw.use("long_skip")
        draw.rng.shuffle(sources)
        self.add(Join(draw, [self.shape(i) for i in sources]), *sources)

    def share(self, source: int) -> bool:
        """Call the block of an earlier step a second time, if one takes this shape."""
        blocks = [
            step.block
            for step in listed(self.net.steps)
            if isinstance(step.block, Block)
            and step.sources != (source,)
            and self.shape(step.sources[0]) == self.shape(source)
        ]
        if blocks:
            self.draw.use("shared_block")
            self.add(self.draw.pick(blocks), source, fresh=False)
        return bool(blocks)

    def grow(self, left: int) -> None:
        """Add one step; ``left`` more may follow."""
        draw = self.draw
        last = len(self.values) - 1
        if len(self.unused) > left + 1 or (len(self.values) > 2 and draw.chance(0.08)):
            self.join()
            return
        source = last
        if len(self.unused) <= left and draw.chance(0.2):
            source = draw.rng.randint(1, last)
        elif len(self.unused) <= left and draw.chance(0.03):
            source = 0
            draw.use("input_reuse")
        if not (draw.chance(0.15) and self.share(source)):
            self.add(draw.block(self.shape(source)), source)

    def finish(self) -> None:
        """Give every value that is left a head, and some networks more outputs than that."""
        draw, net = self.draw, self.net
        ends = list(self.unused)
        if draw.chance(0.25):
            ends.append(draw.rng.randint(1, len(self.values) - 1))
        for end in ends:
            head = Step(draw.pick(HEADS)(draw, self.shape(end)), (end,))
            self.prepare(head)
            net.heads.append(head)
        if draw.chance(0.12):
            draw.use("output_feature_map")
            net.returned = (draw.rng.randint(1, len(self.values) - 1),)
        if len(ends) + len(net.returned) > 1 or draw.chance(0.1):
            net.container = draw.pick(("tuple", "dict"))
            draw.use(f"output_{net.container}")
        if draw.chance(0.06):
            draw.use("unused_module")
            net.spare = ConvUnit(draw, 4, 6).double()
            randomise_(net.spare, draw)
        net.features_used = frozenset(draw.features)


def random_net(seed: int) -> tuple[RandomNet, Tensor]:
    """Draw a convolutional network and an example input for it.

    Parameters
    ----------
    seed : int
        Decides everything: structure, parameters, running statistics and the input.

    Returns
    -------
    tuple of RandomNet and Tensor
        The network in eval mode and an input (2, C, *size), both float64. Any batch size works.
    """
    with torch.random.fork_rng(devices=[]):
        planner = Planner(seed)
        planner.add(DenseConv(planner.draw, planner.shape(0)), 0)
        count = planner.draw.rng.randint(3, 12)
        for left in reversed(range(count - 1)):
            planner.grow(left)
        planner.finish()
    return planner.net.eval(), planner.values[0]


def describe(model: nn.Module) -> str:
    """Return the program of a `RandomNet`: a line per step, with shapes, then the layers in it."""
    if not isinstance(model, RandomNet):
        raise TypeError(f"not a RandomNet: {type(model).__name__}")
    lines = [f"random_net({model.seed}): {len(model.steps)} steps, returns a {model.container}"]
    lines.append(f"v0 = input {model.shapes[0]}")
    seen: dict[int, int] = {}
    for index, step in enumerate(listed(model.steps) + listed(model.heads), start=1):
        name = f"v{index}" if index <= len(model.steps) else f"out{index - len(model.steps) - 1}"
        sources = ", ".join(f"v{i}" for i in step.sources)
        scale = "" if step.scale == 1.0 else f" * {step.scale}"
        shape = f" {model.shapes[index]}" if index < len(model.shapes) else ""
        lines.append(f"{name} = {type(step.block).__name__}({sources}){scale}{shape}")
        first = seen.setdefault(id(step.block), index)
        body = repr(step.block) if first == index else f"the block of v{first} again"
        lines += ["    " + line for line in body.splitlines()]
    lines += [f"returned as it is: v{i}" for i in model.returned]
    lines.append("features: " + " ".join(sorted(model.features_used)))
    return "\n".join(lines)
