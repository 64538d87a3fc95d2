"""Recurrent layers in whole models: gated equals compact, trained, pruned, saved and exported."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gate_checks import (
    TOLERANCE,
    assert_close,
    assert_equal_to_compact,
    assert_partition,
    random_keep,
    run,
)
from torch import Tensor, nn

import fxprune
from fxprune import auto_gate
from fxprune.gated_leaves import GATED_LEAVES, GatedRecurrent

STEPS = torch.rand(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Tagger(nn.Module):
    """Linear, recurrent layer(s), linear: (batch, time, 4) to (batch, time, 5)."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 6), layer, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x).relu())[0])


class TwoHeads(nn.Module):
    """One layer run twice, on its own last state; another graph in training."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Linear(4, 6), nn.LSTM(6, 8, 2, batch_first=True)
        self.head, self.aux = nn.Linear(8, 5), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Any:
        out, (h, c) = self.layer(self.embed(x))
        again, state = self.layer(self.embed(x.flip(1)), (h, c))
        y = self.head(again + out)
        if self.training:
            return y, self.aux(torch.cat([state[0][-1], c[0]], 1))
        return y


class Tied(nn.Module):
    """Two layers that share their recurrent weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.GRU(4, 8), nn.GRU(4, 8), nn.Linear(8, 3)
        self.b.weight_hh_l0 = self.a.weight_hh_l0

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x)[0] * self.b(x)[0])


class Seq2Seq(nn.Module):
    """The encoder's last state starts a decoder cell that reads its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.cell = nn.GRU(4, 8, batch_first=True), nn.GRUCell(3, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encoder(x)[1][0]
        y, outputs = self.out(h), []
        for _ in range(3):
            h = self.cell(y, h)
            y = self.out(h)
            outputs.append(y)
        return torch.stack(outputs, 1)


def lstm() -> nn.Module:
    return Tagger(nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True), 16)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lstm,
    "gru in training mode": lambda: Tagger(nn.GRU(6, 8, 2, batch_first=True), 8).train(),
    "two modes": TwoHeads,
    "two modes, training": lambda: TwoHeads().train(),
    "tied": Tied,
    "decoder": Seq2Seq,
}


@pytest.mark.parametrize("name", MODELS)
def test_gated_equals_compact(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    model.train("training" in name)
    gated = auto_gate(model, STEPS)
    assert_partition(gated)
    assert_close(run(gated, STEPS), run(model, STEPS), "open gates")
    assert max(group.size for group in gated.groups) == 8
    for seed, share in enumerate((0.2, 0.6)):
        gated.set_keep(random_keep(gated, share, seed))
        compact = gated.compact()
        assert_close(run(compact, STEPS), run(gated, STEPS), "compact against gated")
        shorter = STEPS[:2, :4]
        assert_close(run(compact, shorter), run(gated, shorter), "another batch and length")


def test_the_sums_inside_need_their_gates() -> None:
    gated = auto_gate(lstm().double().eval(), STEPS)
    gated.set_keep(random_keep(gated, 0.5))
    right, compact = run(gated, STEPS), gated.compact()
    for node in gated.graph.nodes:
        if "masks" in node.kwargs:
            node.kwargs = {}
    gated.recompile()
    (wrong,) = run(gated, STEPS)
    assert (wrong - right[0]).abs().max() > 1e3 * TOLERANCE
    assert_close(run(compact, STEPS), right)


def test_soft_gates_reach_the_sums_inside() -> None:
    gated = auto_gate(lstm().double().eval(), STEPS)
    gates = torch.full((gated.plan.n_units,), 0.7, dtype=torch.float64, requires_grad=True)

    def loss(value: Tensor) -> Tensor:
        with gated.soft_gates(value):
            return gated(STEPS).square().sum()

    assert torch.autograd.gradcheck(loss, (gates,))
    hard = random_keep(gated, 0.5)
    gated.set_keep(hard)
    with gated.soft_gates(torch.cat([hard[g.name] for g in gated.groups]).double()):
        soft = run(gated, STEPS)
    assert_close(soft, run(gated, STEPS), "soft gates of 0 and 1 against hard ones")


def test_names_and_classes() -> None:
    model = lstm().double()
    gated = auto_gate(model, STEPS)
    names = {n for n in gated.state_dict() if not n.startswith("fxprune")}
    assert names == set(model.state_dict())
    assert isinstance(gated.layer, GatedRecurrent)
    assert isinstance(gated.layer, nn.LSTM)
    assert type(gated.compact().layer) is nn.LSTM
    assert [group.name for group in gated.groups] == ["embed", "layer"]
    for plain, kind in GATED_LEAVES.items():
        assert type(kind.from_plain(plain(3, 4)).to_plain()) is plain


def test_copies_and_pickles() -> None:
    gated = auto_gate(lstm().double().eval(), STEPS)
    gated.set_keep(random_keep(gated, 0.5))
    right = run(gated, STEPS)
    for other in (copy.deepcopy(gated), pickle.loads(pickle.dumps(gated))):
        assert_close(run(other, STEPS), right)
        other.layer.weight_hh_l0.data.zero_()
        assert (run(other, STEPS)[0] - right[0]).abs().max() > 1e-3
        assert_close(run(gated, STEPS), right, "the first one is left alone")


def test_training_through_closed_gates() -> None:
    model = lstm().double()
    gated = auto_gate(model, STEPS)
    gated.set_keep(random_keep(gated, 0.5))
    optimizer = torch.optim.SGD(gated.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        gated(STEPS).square().mean().backward()
        optimizer.step()
    columns = gated.layer.weight_hh_l0.grad.abs().sum(0)
    assert torch.equal(columns > 0, gated.keep["layer"])
    assert_equal_to_compact(gated, STEPS)


def test_state_given_by_the_caller_freezes_the_units() -> None:
    layer = nn.GRU(4, 8)

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = layer, nn.Linear(8, 2)

        def forward(self, x: Tensor, h: Tensor) -> Any:
            out, h = self.layer(x, h)
            return self.head(out), h

    gated = auto_gate(Stateful(), (torch.rand(5, 2, 4), torch.rand(1, 2, 8)))
    reasons = {str(f.member): f.reason for f in gated.frozen}
    assert "starts from a state of fixed size" in reasons["layer.weight_hh_l0[0]"]
    assert not gated.groups


def test_projections_keep_their_hidden_units() -> None:
    gated = auto_gate(Tagger(nn.LSTM(6, 8, proj_size=4), 4), STEPS.float())
    assert "layer.weight_hr_l0" in [group.name for group in gated.groups]
    reasons = {str(f.member): f.reason for f in gated.frozen}
    assert "has projections" in reasons["layer.weight_hh_l0[0]"]


def test_from_prune_to_onnx(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Tagger(nn.LSTM(6, 24, 2, batch_first=True), 24).eval(), STEPS.float()
    compact = fxprune.prune(model, x, macs=0.5)
    assert compact.layer.hidden_size < 24
    fxprune.save(compact, tmp_path / "m.pt")
    again = fxprune.load(tmp_path / "m.pt", copy.deepcopy(model))
    assert torch.equal(again(x), compact(x))
    fxprune.export_onnx(compact, tmp_path / "m.onnx", x, dynamic_batch=True)
