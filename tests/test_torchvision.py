"""Every convolutional model of torchvision: gated, masked at random, cut out, compared and counted.

Per model, with no argument but the model: open gates change nothing, the compact model computes
what the gated one computes in both modes, its cost is what was announced, and as much can be pruned
as the zoo's row promises.
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from model_zoo import MODELS, TORCH_PRUNING, build, example, half_masks, names, prunable_share
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from fxprune.api import auto_gate
from fxprune.gated import GatedModule

RELATIVE = 1e-9
SEEDS = (0, 1, 2)
# Above this many parameters, one mask: in float64 every copy takes more than a gigabyte.
LARGE = 150_000_000
RANDOM = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, StochasticDepth)

ZOO = [pytest.param(n, marks=[pytest.mark.slow] * entry.slow) for n, entry in MODELS.items()]
VARIANTS: list[Any] = [
    ("googlenet", {"transform_input": True}),  # what the pretrained weights come with
    ("fcn_resnet50", {"aux_loss": True}),
]


@pytest.fixture(autouse=True)
def _free_memory() -> Iterator[None]:
    """Free a test's models before the next one: graphs are cycles, and some of these are large."""
    yield
    gc.collect()


def test_zoo_is_complete() -> None:
    assert set(MODELS) == set(names())
    assert set(TORCH_PRUNING) <= set(MODELS)
    assert all(entry.share >= 0.95 for entry in MODELS.values())


@pytest.mark.parametrize("name", ZOO)
def test_model(name: str) -> None:
    check(name, build(name))


@pytest.mark.parametrize(
    ("name", "options"),
    VARIANTS,
    ids=lambda value: "-".join([value] if isinstance(value, str) else value),
)
def test_variant(name: str, options: dict[str, Any]) -> None:
    check(name, build(name, **options))


def check(name: str, original: nn.Module) -> None:
    remove_randomness(original)
    before = fingerprint(original)
    gated = auto_gate(original)
    assert fingerprint(original) == before, "auto_gate changed the caller's model"
    check_coverage(name, original, gated)
    check_open_gates(name, original, gated)
    seeds = SEEDS if sum(p.numel() for p in original.parameters()) <= LARGE else SEEDS[:1]
    del original
    for seed in seeds:
        gated.set_keep(random_masks(gated, seed))
        compact = gated.compact()
        for training in (True, False):  # eval after train: it then sees the updated statistics too
            x = example(name, training)
            expected = outputs(gated.train(training), x)
            assert_same(expected, outputs(compact.train(training), x))
        if seed == 0:
            check_change_is_noticed(expected, compact, x)
        check_cost(name, gated, compact)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "googlenet"])
def test_a_changed_weight_is_noticed_in_train_mode(name: str) -> None:
    model = build(name)
    remove_randomness(model)
    gated = auto_gate(model).train()
    gated.set_keep(random_masks(gated, seed=0))
    compact = gated.compact()
    x = example(name, training=True)
    check_change_is_noticed(outputs(gated, x), compact, x)


def check_change_is_noticed(expected: dict[str, Tensor], compact: nn.Module, x: Tensor) -> None:
    """Change one weight of the first convolution: the comparison must reach back that far.

    Not for masks that may keep one unit of a group: if that one is dead, so is all before it.
    """
    weight = next(p for p in compact.parameters() if p.dim() > 1)
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    with pytest.raises(AssertionError, match="relative error"):
        assert_same(expected, outputs(compact, x))


def check_coverage(name: str, original: nn.Module, gated: GatedModule) -> None:
    entry = MODELS[name]
    reasons = Counter(axis.reason for axis in gated.frozen)
    assert prunable_share(original, gated) >= entry.share, reasons
    dense = sum(p.numel() for p in original.parameters())
    assert gated.cost().params == dense
    gated.set_keep(half_masks(gated))
    half = gated.cost().params / dense
    gated.set_keep({group.name: torch.ones(group.size, dtype=torch.bool) for group in gated.groups})
    assert half <= entry.half, reasons
    assert half <= TORCH_PRUNING.get(name, 1.0) + 0.0005, reasons


def check_open_gates(name: str, original: nn.Module, gated: GatedModule) -> None:
    for training in (False, True):
        x = example(name, training)
        expected = outputs(original.train(training), x)
        actual = outputs(gated.train(training), x)
        assert list(actual) == list(expected)
        for path, tensor in expected.items():
            assert torch.equal(actual[path], tensor), f"{path}: open gates change the output"


def check_cost(name: str, gated: GatedModule, compact: fx.GraphModule) -> None:
    """Count on the compact model, which ends up on the meta device: shapes are enough, and free."""
    cost = gated.cost()
    assert sum(p.numel() for p in compact.parameters()) == cost.params
    compact.to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        compact(torch.empty(MODELS[name].costed, dtype=torch.float64, device="meta"))
    assert counter.get_total_flops() == 2 * cost.macs


def remove_randomness(model: nn.Module) -> None:
    """Set drop probabilities to 0: layers of different width draw different masks in train mode."""
    for module in model.modules():
        if isinstance(module, RANDOM):
            module.p = 0.0


def random_masks(gated: GatedModule, seed: int) -> dict[str, Tensor]:
    """Return masks: seed 0 keeps about half of every group, others from one unit to all."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in gated.groups:
        if seed == 0:
            mask = torch.rand(group.size, generator=generator) < 0.5
            mask[int(torch.randint(group.size, (), generator=generator))] = True
        else:
            kept = int(torch.randint(1, group.size + 1, (), generator=generator))
            mask = torch.randperm(group.size, generator=generator) < kept
        masks[group.name] = mask
    return masks


def outputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run a model and name its outputs; the type of a named tuple belongs to their names."""
    with torch.no_grad():
        out = model(x)
    if isinstance(out, Tensor):
        return {"output": out}
    if isinstance(out, dict):
        return dict(out)
    return {f"{type(out).__name__}.{name}": tensor for name, tensor in out._asdict().items()}


def assert_same(expected: dict[str, Tensor], actual: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for path, reference in expected.items():
        scale = float(reference.abs().max())
        assert actual[path].shape == reference.shape
        assert torch.isfinite(reference).all()
        assert scale > 0, f"{path} is all zero"
        error = float((actual[path] - reference).abs().max()) / scale
        assert error <= RELATIVE, f"{path}: relative error {error:.1e}"


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Return a digest of every tensor, and how the modules are set up."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    digests = {n: hashlib.sha1(t.detach().numpy()).hexdigest() for n, t in tensors}
    modes = {f"{n}.training": str(m.training) for n, m in model.named_modules()}
    return {**digests, **modes, "": repr(model)}
