"""What is closed is cut out in the middle of a run, and training goes on as if it were masked."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from gate_checks import random_keep
from shrinking import NETS, OPTIMIZERS, Training, assert_same, close, further, gate, left_of
from torch import Tensor, nn

import fxprune


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_training_goes_on_as_if_the_units_were_masked(name: str, optimizer: str) -> None:
    masked = Training.of(name, optimizer, clip=0.5)
    masked.gated.train()
    masked.step()
    small = masked.copy()
    for seed in range(2):
        masked.gated.set_keep(further(small.gated, 0.7, seed))
        before = {n: id(p) for n, p in small.gated.named_parameters()}
        shrunk = small.gated.shrink_(small.optimizer)
        assert shrunk
        assert shrunk.params_after < shrunk.params_before
        assert {n: id(p) for n, p in small.gated.named_parameters()} == before
        assert small.gated.cost() == masked.gated.cost()
        assert_same(small, masked, "at once")
        for step in range(3):
            close(small.step(), masked.step(), f"loss of step {step}")
            assert_same(small, masked, f"step {step}")
    for training in (True, False):
        small.gated.train(training)
        masked.gated.train(training)
        close(small.gated(small.x), masked.gated(small.x), "outputs")


def test_the_comparison_notices_what_is_wrong() -> None:
    masked = Training.of("residual", "adamw")
    masked.step()
    small = masked.copy()
    masked.gated.set_keep(further(small.gated, 0.7, 0))
    small.gated.shrink_(small.optimizer)
    assert_same(small, masked, "right")
    weight = small.gated.get_parameter("3.deep.weight")
    for held in (small.optimizer.state[weight]["exp_avg_sq"], weight.data):
        held[0, 0, 0, 0] += 1e-6
        with pytest.raises(AssertionError, match=r"3\.deep\.weight"):
            assert_same(small, masked, "wrong")
        held[0, 0, 0, 0] -= 1e-6
    assert_same(small, masked, "right again")


@pytest.mark.parametrize("alive", [True, False])
def test_gradients_that_add_up_are_cut_too(alive: bool) -> None:
    """Also while the loss of the batch before is still held, with the graph it came from."""
    masked = Training.of("transformer", "sgd")
    small = masked.copy()
    losses = []
    for one in (masked, small):
        losses.append(F.cross_entropy(one.gated(one.x), one.y))
        losses[-1].backward(retain_graph=alive)
        one.x = one.x.flip(0)
    masked.gated.set_keep(further(small.gated, 0.6, 1))
    whole = {n: p.grad.clone() for n, p in masked.gated.named_parameters()}
    if not alive:
        losses.clear()
    small.gated.shrink_(small.optimizer)
    for name, grad in left_of(masked.gated, whole).items():
        close(small.gated.get_parameter(name).grad, grad, name)
    # where units went, the whole model still has a gradient: of them alone, it is of no use
    close(small.step(), masked.step(), "loss")
    assert_same(small, masked, "after both batches")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_and_frozen_parameters_stay(dtype: torch.dtype) -> None:
    gated, x, y = gate("residual", dtype)
    frozen = ["0.weight", "3.norm.bias", "4.last.weight"]
    for name in frozen:
        gated.get_parameter(name).requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in gated.parameters() if p.requires_grad], 0.1, 0.9)
    F.cross_entropy(gated(x).float(), y).backward()
    optimizer.step()
    gated.set_keep(random_keep(gated, 0.7))
    expected = gated(x)
    names = [n for n, p in gated.named_parameters() if not p.requires_grad]
    assert gated.shrink_(optimizer)
    assert [n for n, p in gated.named_parameters() if not p.requires_grad] == names == frozen
    assert {p.dtype for p in gated.parameters()} == {gated(x).dtype} == {dtype}
    rounding = 30 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(gated(x), expected, rtol=0, atol=rounding)
    F.cross_entropy(gated(x).float(), y).backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["residual", "depthwise"])
def test_the_memory_format_stays(name: str) -> None:
    training = Training.of(name, "sgd")
    training.gated.to(memory_format=torch.channels_last)
    training.step()
    training.gated.set_keep(random_keep(training.gated, 0.6))
    compact = training.gated.compact()
    training.gated.shrink_(training.optimizer)
    kernels = {n: p for n, p in training.gated.named_parameters() if p.dim() == 4}
    assert any(p.shape[1] > 1 and p.shape[-1] > 1 for p in kernels.values())
    for path, small in kernels.items():
        last = torch.empty_like(small, memory_format=torch.channels_last).stride()
        momentum = training.optimizer.state[small]["momentum_buffer"]
        for tensor in (small, compact.get_parameter(path), momentum):
            axes = [d for d in range(4) if tensor.shape[d] > 1]
            assert [tensor.stride(d) for d in axes] == [last[d] for d in axes], path


def test_sparse_gradients_are_cut_too() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(9, 8, sparse=True)
            self.deep, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, numbers: Tensor) -> Tensor:
            return self.last(F.relu(self.deep(self.words(numbers).mean(1))))

    numbers, y = torch.arange(12).reshape(4, 3) % 7, torch.arange(4) % 3
    masked = fxprune.auto_gate(Words().double(), numbers)
    small = copy.deepcopy(masked)
    masked.set_keep(further(small, 0.6, 0))
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    for gated in (small, masked):
        F.cross_entropy(gated(numbers), y).backward()
    whole = {n: p.grad.to_dense() for n, p in masked.named_parameters()}
    assert small.get_parameter("words.weight").grad.is_sparse
    assert small.shrink_(optimizer)
    grad = small.get_parameter("words.weight").grad
    assert grad.is_sparse
    close(grad.to_dense(), left_of(masked, whole)["words.weight"], "gradient")
    optimizer.step()
