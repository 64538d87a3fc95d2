"""What symbolic tracing finds of a model's tensors, and what it shares between opened calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close
from torch import Tensor, fx, nn

from fxprune import auto_gate
from fxprune.capture import open_calls
from fxprune.capture.symbolic import SymbolicTracer, trace_modes


class Tensors(nn.Module):
    """Reads tensors of its own: a tied one, one that only its child names, one that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Module()
        self.first = nn.Parameter(torch.rand(4))
        self.child.second = self.first
        self.child.shift = nn.Parameter(torch.rand(4))
        self.child.register_buffer("scale", torch.rand(4))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, (4,), self.child.second, self.child.shift) * self.child.scale
        if self.training:
            self.steps = self.steps + 1
            y = y + torch.mul(x, self.steps)
        return y


def test_tensors_go_by_their_first_names() -> None:
    graph = trace_modes(Tensors(), 1, frozenset())["eval"]
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    assert names == ["first", "child.shift", "child.scale"]


def test_a_tensor_that_the_forward_replaced_is_not_taken_for_the_old_one() -> None:
    with torch.no_grad():
        graph = SymbolicTracer().trace(Tensors().train())
    names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    assert names == ["first", "child.shift", "child.scale", "steps"]  # the new one has the name now


@fx.wrap
def rolled(x: Tensor, shift: float, wide: bool) -> Tensor:
    """Decide by sizes, which plain tracing cannot follow."""
    x = F.pad(x, (0, 0, 0, x.shape[1] % 2))
    return (torch.roll(x, int(shift), 1) if wide else x) * shift


class Rolls(nn.Module):
    """Calls one function with like and unlike arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        settings = ((1, True), (1.0, True), (1, True), (1, 1), (1, False), (1, True))
        for layer, (shift, wide) in zip(self.layers, settings, strict=True):
            x = rolled(F.relu(layer(x)), shift, wide)
        return x


def test_calls_share_a_trace_only_where_all_arguments_are_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traced = []
    trace = open_calls._Opening._trace
    monkeypatch.setattr(
        open_calls._Opening, "_trace", lambda self: traced.append(self) or trace(self)
    )
    torch.manual_seed(0)
    model, x = Rolls().double().eval(), torch.rand(2, 7, 6).double()
    gated = auto_gate(model, x)
    assert not any(node.target is rolled for node in gated.graph.nodes)
    assert_close(gated(x), model(x))
    assert len(traced) == 2 * 5  # the first pads, and the last is like the third
    assert len(gated.groups) == 5
