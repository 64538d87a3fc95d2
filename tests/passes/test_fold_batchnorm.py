"""Folding keeps the function to the last bits of float64, and refuses where it could not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp

from fxprune.errors import PostconditionError, PreconditionError
from fxprune.passes.base import PassResult
from fxprune.passes.fold_batchnorm import FoldBatchNorm

EXACT = {"rtol": 1e-12, "atol": 1e-12}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def randomise(model: nn.Module) -> nn.Module:
    """Give every normalisation statistics and affine parameters far from the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.double().eval()


def trace(model: nn.Module, *inputs: Tensor) -> GraphModule:
    gm = symbolic_trace(randomise(model))
    if inputs:
        ShapeProp(gm).propagate(*inputs)
    return gm


def norms(gm: GraphModule) -> list[str]:
    return [
        n.name
        for n in gm.graph.nodes
        if n.op == "call_module"
        and isinstance(gm.get_submodule(n.target), nn.modules.batchnorm._BatchNorm)
    ]


def image(dims: int, channels: int = 4) -> Tensor:
    return torch.randn(2, channels, *[5] * dims, dtype=torch.float64)


def check_folds(gm: GraphModule, x: Tensor, folded: int = 1) -> PassResult:
    expected = copy.deepcopy(gm)(x)
    before = len(norms(gm))
    result = FoldBatchNorm()(gm)
    assert result.changed
    assert len(result.edits) == folded
    assert before - len(norms(gm)) == folded
    torch.testing.assert_close(gm(x), expected, **EXACT)
    return result


def check_skips(gm: GraphModule, x: Tensor, *reasons: str) -> None:
    expected = copy.deepcopy(gm)(x)
    result = FoldBatchNorm()(gm)
    assert not result.changed
    assert [skip.reason for skip in result.skipped] == list(reasons)
    torch.testing.assert_close(gm(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kinds", [CONVS, TRANSPOSED], ids=["conv", "transposed"])
def test_convolutions(
    dims: int, bias: bool, groups: int, kinds: dict[int, Callable[..., nn.Module]]
) -> None:
    conv = kinds[dims](4, 8, 3, stride=2, padding=1, groups=groups, bias=bias)
    check_folds(trace(nn.Sequential(conv, NORMS[dims](8), nn.ReLU())), image(dims))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_padding_and_missing_affine(affine: bool, mode: str) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode=mode)
    check_folds(trace(nn.Sequential(conv, nn.BatchNorm2d(4, affine=affine))), image(2))


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    check_folds(trace(nn.Sequential(nn.Linear(4, 3, bias=bias), nn.BatchNorm1d(3)), x), x)


def test_linear_on_a_sequence_is_left() -> None:
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    gm = trace(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), x)
    check_skips(gm, x, "the number of dimensions that _0 returns must be 2 and is 3")


def test_linear_of_unknown_rank_is_left() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    gm = trace(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    reason = "the number of dimensions that _0 returns must be 2 and is not known"
    check_skips(gm, x, f"{reason} (run ShapeProp first)")


def test_a_chain_folds_completely() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, groups=2),
        nn.BatchNorm2d(4),
    )
    result = check_folds(trace(model), image(2), folded=3)
    assert result.skipped == ()


def test_the_edit_says_what_was_folded() -> None:
    gm = trace(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    (edit,) = FoldBatchNorm()(gm).edits
    assert (edit.rule, edit.node, edit.before, edit.after) == (
        "fold_batchnorm",
        "_1",
        "Conv2d 0, BatchNorm2d 1",
        "Conv2d 0",
    )
    assert list(dict(gm.named_modules())) == ["", "0"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype_and_requires_grad_are_kept(dtype: torch.dtype) -> None:
    gm = trace(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))).to(dtype)
    conv = gm.get_submodule("0").requires_grad_(False)
    weight = conv.weight
    FoldBatchNorm()(gm)
    assert conv.weight is weight
    assert (conv.weight.dtype, conv.bias.dtype) == (dtype, dtype)
    assert not conv.bias.requires_grad


class Net(nn.Module):
    """Call a function with a convolution and its normalisation at hand."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body
        self.conv = nn.Conv2d(4, 4, 1)
        self.other = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def fan_out(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y


def twice_read(m: Net, x: Tensor) -> Tensor:
    y = m.conv(x)
    return torch.cat([m.norm(y), y, y.relu()])


SKIPPED: dict[str, tuple[Callable[[Net, Tensor], Tensor], list[str]]] = {
    "fan-out": (fan_out, ["conv is also read by add"]),
    "two other readers": (twice_read, ["conv is also read by relu, cat"]),
    "norm called twice": (
        lambda m, x: m.norm(m.conv(x)) + m.norm(m.other(x)),
        ["norm is called 2 times"] * 2,
    ),
    "conv called twice": (
        lambda m, x: m.norm(m.conv(x)) + m.conv(x + 1),
        ["conv is called 2 times"],
    ),
    "weight read elsewhere": (
        lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(),
        ["conv shares a parameter or buffer with something else"],
    ),
    "affine pair read elsewhere": (
        lambda m, x: m.norm(m.conv(x)) * m.norm.weight.sum(),
        ["norm shares a parameter or buffer with something else"],
    ),
    "no layer before": (
        lambda m, x: m.norm(m.conv(x).relu()),
        ["its input is relu, which is not exactly one of Conv2d, ConvTranspose2d"],
    ),
    "norm first": (
        lambda m, x: m.conv(m.norm(x)),
        ["its input is x, which is not exactly one of Conv2d, ConvTranspose2d"],
    ),
}


@pytest.mark.parametrize(("body", "reasons"), SKIPPED.values(), ids=SKIPPED.keys())
def test_what_cannot_be_folded_is_left(
    body: Callable[[Net, Tensor], Tensor], reasons: list[str]
) -> None:
    check_skips(trace(Net(body)), image(2), *reasons)


def plain(m: Net, x: Tensor) -> Tensor:
    return m.norm(m.conv(x))


def test_tied_weights_are_left() -> None:
    model = Net(lambda m, x: m.norm(m.conv(x)) + m.other(x))
    model.other.weight = model.conv.weight
    check_skips(trace(model), image(2), "conv shares a parameter or buffer with something else")


def test_batch_statistics_are_left() -> None:
    model = Net(plain)
    model.norm = nn.BatchNorm2d(4, track_running_stats=False)
    reason = "it keeps no running statistics, so it depends on the batch in eval mode too"
    check_skips(trace(model), image(2), reason)


def test_hooks_are_left() -> None:
    gm = trace(Net(plain))
    gm.conv.register_forward_hook(lambda module, args, y: y * 2)
    reason = "conv has forward hooks, which may change what it computes"
    check_skips(gm, image(2), reason)


class LoudNorm(nn.BatchNorm2d):
    __module__ = "torch.nn"  # a leaf for tracing

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class LoudConv(nn.Conv2d):
    __module__ = "torch.nn"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) ** 2


def test_subclasses_are_left() -> None:
    model = Net(plain)
    model.norm = LoudNorm(4)
    reason = "LoudNorm is not exactly BatchNorm1d, 2d or 3d and may compute something else"
    check_skips(trace(model), image(2), reason)
    model = Net(plain)
    model.conv = LoudConv(4, 4, 1)
    wanted = "Conv2d, ConvTranspose2d"
    reason = f"its input is conv (LoudConv), which is not exactly one of {wanted}"
    check_skips(trace(model), image(2), reason)


def test_channels_that_do_not_fit_are_left() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(4))
    (skip,) = FoldBatchNorm()(trace(model)).skipped
    assert skip.reason == "it normalises 4 channels, but _0 makes 6"


def test_a_perturbed_weight_is_noticed() -> None:
    """The comparison these tests rest on must be able to fail."""
    gm = trace(Net(plain))
    x = image(2)
    expected = copy.deepcopy(gm)(x)
    FoldBatchNorm()(gm)
    with torch.no_grad():
        gm.conv.weight[0, 0] += 1e-10
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        torch.testing.assert_close(gm(x), expected, **EXACT)


@pytest.mark.parametrize(
    ("prepare", "where"),
    [
        (lambda gm: gm.train(), "where: the module itself, norm"),
        (lambda gm: gm.norm.train(), "where: norm"),
    ],
    ids=["all", "norm"],
)
def test_training_mode_is_refused(prepare: Callable[[GraphModule], object], where: str) -> None:
    gm = trace(Net(plain))
    prepare(gm)
    with pytest.raises(PreconditionError, match=f"works in eval mode only.\n  {where}\n") as info:
        FoldBatchNorm()(gm)
    assert "call .eval()" in info.value.hint
    assert norms(gm) == ["norm"]


def test_the_promise_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FoldBatchNorm, "run", lambda self, gm: PassResult(gm, False))
    with pytest.raises(PostconditionError, match="left a batch normalisation that could be"):
        FoldBatchNorm()(trace(Net(plain)))
