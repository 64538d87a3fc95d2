"""Attention: policies, packed projections, modules and functions that tracing cannot see into."""

from __future__ import annotations

import pytest
import torch
from gate_checks import (
    assert_close,
    assert_cost,
    assert_equal_to_compact,
    assert_partition,
    random_keep,
    run,
)
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.swin_transformer import SwinTransformer

import fxprune
from fxprune.errors import ConfigError


class SelfAttention(nn.Module):
    """An encoder layer with an attention module, tokens in and out."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 12), nn.Linear(12, 4)
        self.norm = nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 3, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        z = self.norm(y)
        y = y + self.attention(z, z, z, need_weights=False)[0]
        return self.leave(y)


class Packed(nn.Module):
    """Query, key and value from one layer, in several spellings."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.enter, self.qkv, self.leave = nn.Linear(5, 12), nn.Linear(12, 36), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        y = self.qkv(self.enter(x))
        if self.order == "3HD":
            q, k, v = y.reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.order == "H3D":
            y = y.reshape(b, n, 3, 3, 4).permute(3, 0, 2, 1, 4)
            q, k, v = y[0], y[1], y[2]
        else:
            q, k, v = y.view(b, n, 3, -1).transpose(1, 2).chunk(3, dim=-1)
        a = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.leave(a.transpose(1, 2).reshape(b, n, -1))


class Looked(nn.Module):
    """Packed projections with a joined bias, and a table looked up by a view of an index.

    Tracing keeps the view as a constant of the model, beside those that passes make.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.leave = nn.Linear(5, 12), nn.Linear(12, 36), nn.Linear(12, 4)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        self.register_buffer("k_bias", torch.zeros(12))
        self.table = nn.Parameter(torch.randn(9, 3))
        self.register_buffer("at", torch.randint(9, (7, 7)))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        y = nn.functional.linear(self.enter(x), self.qkv.weight, bias)
        q, k, v = y.reshape(b, n, 3, 3, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = self.table[self.at.view(-1)].view(7, 7, -1).permute(2, 0, 1).unsqueeze(0)
        a = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.leave(a.transpose(1, 2).reshape(b, n, -1))


def kinds(gated: fxprune.GatedModule) -> list[tuple[str, int]]:
    return sorted((g.kind, g.size) for g in gated.groups if g.kind != "channel")


def check(model: nn.Module, x: Tensor) -> fxprune.GatedModule:
    model = model.double().eval()
    gated = fxprune.auto_gate(model, x)
    assert_partition(gated)
    assert_close(run(gated, x), run(model, x))
    for seed in range(2):
        gated.set_keep(random_keep(gated, 0.6, seed))
        assert_cost(gated, assert_equal_to_compact(gated, x), x)
    return gated


def tokens() -> Tensor:
    return torch.randn(2, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


BOTH = [("head", 3), ("head_dim", 4), ("head_dim", 4)]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("both", BOTH), ("head", BOTH[:1]), ("head_dim", BOTH[1:]), ("off", [])],
)
def test_policies(policy: str, expected: list[tuple[str, int]]) -> None:
    model = SelfAttention().double().eval()
    gated = fxprune.auto_gate(model, tokens(), attention=policy)  # type: ignore[arg-type]
    assert kinds(gated) == expected
    gated.set_keep(random_keep(gated, 0.5))
    assert_equal_to_compact(gated, tokens())


def test_a_bad_policy() -> None:
    with pytest.raises(ConfigError, match="attention"):
        fxprune.auto_gate(SelfAttention(), tokens().float(), attention="heads")  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["3HD", "H3D", "H(3D)"])
def test_packed_projections(order: str) -> None:
    assert kinds(check(Packed(order), tokens())) == BOTH


def test_a_table_looked_up_by_a_constant() -> None:
    assert kinds(check(Looked(), tokens())) == BOTH


def test_vision_transformer() -> None:
    model = VisionTransformer(32, 8, 1, 3, 24, 48, num_classes=5)
    nn.init.normal_(model.heads[0].weight)  # torchvision starts it at 0
    gated = check(model, torch.randn(1, 3, 32, 32).double())
    assert fxprune.explain(gated).prunable_params > 0.95


def test_window_attention() -> None:
    model = SwinTransformer([4, 4], 12, [2], [3], [4, 4], num_classes=5)
    gated = check(model, torch.randn(1, 3, 32, 32).double())
    assert fxprune.explain(gated).prunable_params > 0.95
    with pytest.raises(AssertionError, match="other sizes"):
        gated(torch.randn(1, 3, 64, 64).double())


def test_save_and_load_keep_the_policy(tmp_path: object) -> None:
    model = SelfAttention().double().eval()
    gated = fxprune.auto_gate(model, tokens(), attention="head")
    gated.set_keep(random_keep(gated, 0.5))
    compact = gated.compact()
    fxprune.save(compact, f"{tmp_path}/m.pt")
    loaded = fxprune.load(f"{tmp_path}/m.pt", SelfAttention().double().eval())
    assert_close(run(loaded, tokens()), run(compact, tokens()))
