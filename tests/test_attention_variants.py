"""Masks, shapes and options of torch's attention: all of it stays prunable, and exact at other sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gate_checks import assert_close, assert_equal_to_compact, assert_partition, random_keep, run
from torch import Tensor, nn

import fxprune

BATCH, LENGTH = 2, 5


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).triu(1)


def padding(batch: int, length: int) -> Tensor:
    return (torch.arange(length) >= length - 2).expand(batch, length) & (
        torch.arange(batch)[:, None] > 0
    )


def scores(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Case:
    """What happens between two layers, and the masks it is given besides tokens.

    Attributes
    ----------
    make : callable
        Makes the module in the middle.
    call : callable
        ``call(module, y, *masks)``.
    masks : callable
        ``masks(batch, length)`` returns further inputs.
    kinds : set of str
        Kinds of groups that there must be.
    batch_axis : int
    other_sizes : bool
        Whether other batch sizes and lengths are possible at all.
    """

    make: Callable[[], nn.Module]
    call: Callable[..., Any]
    masks: Callable[[int, int], tuple[Tensor, ...]] = lambda batch, length: ()
    kinds: frozenset[str] = frozenset({"channel", "head", "head_dim"})
    batch_axis: int = 0
    other_sizes: bool = True


class Between(nn.Module):
    """``leave(middle(enter(x), masks))``; what the middle returns besides tokens is passed on."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 12), nn.Linear(12, 3)
        self.middle, self.case = case.make(), case

    def forward(self, x: Tensor, mask: Any = None, other: Any = None) -> Any:
        masks = [m for m in (mask, other) if m is not None]
        y = self.case.call(self.middle, self.enter(x), *masks)
        return (self.leave(y[0]), *y[1:]) if isinstance(y, tuple) else self.leave(y)


def mha(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(12, 3, batch_first=True, **options)


def late(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.MultiheadAttention(12, 3, **options)


def attend(**options: Any) -> Callable[..., Any]:
    return lambda m, y: m(y, y, y, **options)[0]


def masked(*names: str, **options: Any) -> Callable[..., Any]:
    def call(m: nn.Module, y: Tensor, *masks: Tensor) -> Any:
        return m(y, y, y, **dict(zip(names, masks, strict=True)), **options)[0]

    return call


def both(m: nn.Module, y: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    attended, weights = m(y, y, y, **options)
    return attended, weights


NO_HEADS = frozenset({"channel", "head_dim"})

MODULES = {
    "mask": Case(mha(), masked("attn_mask"), lambda b, n: (causal(n),)),
    "mask of floats, no weights": Case(
        mha(), masked("attn_mask", need_weights=False), lambda b, n: (scores(n, n),)
    ),
    "mask per sample and head": Case(
        mha(), masked("attn_mask"), lambda b, n: (scores(3 * b, n, n),), NO_HEADS
    ),
    "padding": Case(mha(), masked("key_padding_mask"), lambda b, n: (padding(b, n),)),
    "both masks": Case(
        mha(add_bias_kv=True, add_zero_attn=True),
        masked("attn_mask", "key_padding_mask"),
        lambda b, n: (causal(n), padding(b, n)),
    ),
    "written mask": Case(
        mha(), attend(attn_mask=causal(LENGTH), is_causal=True), other_sizes=False
    ),
    "bias of key and value": Case(mha(add_bias_kv=True), attend()),
    "zero attention": Case(mha(add_zero_attn=True), attend(need_weights=False)),
    "without bias": Case(mha(bias=False), attend()),
    "weights returned": Case(mha(), both),
    "weights of heads returned": Case(
        mha(), lambda m, y: both(m, y, average_attn_weights=False), kinds=NO_HEADS
    ),
    "batch second": Case(late(), attend(), batch_axis=1),
    "batch second, padding": Case(
        late(add_bias_kv=True),
        masked("key_padding_mask"),
        lambda b, n: (padding(b, n),),
        batch_axis=1,
    ),
    "batch second, both masks": Case(
        late(add_zero_attn=True),
        masked("attn_mask", "key_padding_mask", need_weights=False),
        lambda b, n: (causal(n), padding(b, n)),
        batch_axis=1,
    ),
    "no batch": Case(late(), lambda m, y: m(y[0], y[0], y[0])[0][None], other_sizes=False),
    "called twice": Case(mha(), lambda m, y: m(m(y, y, y)[0] + y, y, y)[0]),
}


class OtherWidths(nn.Module):
    """Cross attention with keys and values of widths of their own."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.k, self.v = nn.Linear(12, 7), nn.Linear(12, 9)
        self.attention = nn.MultiheadAttention(12, 3, kdim=7, vdim=9, **options)

    def forward(self, y: Tensor) -> Tensor:
        result: Tensor = self.attention(y, self.k(y), self.v(y))[0]
        return result


class Dot(nn.Module):
    """Scaled dot product attention with as many heads of query and of key and value as asked."""

    def __init__(self, heads: int = 3, kv: int = 3, **options: Any) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 4 * n) for n in (heads, kv, kv))
        self.out, self.options, self.heads = nn.Linear(4 * heads, 12), options, (heads, kv, kv)

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(y).unflatten(-1, (n, -1)).transpose(1, 2)
            for layer, n in zip((self.q, self.k, self.v), self.heads, strict=True)
        )
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **self.options)
        return self.out(z.transpose(1, 2).flatten(2))


class SharedKeys(Dot):
    """Grouped queries, the keys and values repeated by hand."""

    def forward(self, y: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(y).unflatten(-1, (n, -1)).transpose(1, 2)
            for layer, n in zip((self.q, self.k, self.v), self.heads, strict=True)
        )
        k, v = k.repeat_interleave(2, 1), torch.repeat_interleave(v, 2, dim=1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def plain(m: nn.Module, y: Tensor, *masks: Tensor) -> Any:
    return m(y, *masks)


FUNCTIONS = {
    "widths of key and value": Case(lambda: OtherWidths(batch_first=True), plain),
    "widths of key and value, batch second": Case(OtherWidths, plain, batch_axis=1),
    "dot product": Case(Dot, plain),
    "dot product, causal": Case(lambda: Dot(is_causal=True), plain),
    "dot product, scale": Case(lambda: Dot(scale=0.3), plain),
    "dot product, mask": Case(Dot, plain, lambda b, n: (~causal(n),)),
    "dot product, mask per sample": Case(Dot, plain, lambda b, n: (scores(b, 1, n, n),)),
    "grouped queries": Case(lambda: Dot(4, 2, enable_gqa=True), plain, kinds=NO_HEADS),
    "one key for all": Case(lambda: Dot(4, 1, enable_gqa=True), plain, kinds=NO_HEADS),
    "grouped queries by hand": Case(lambda: SharedKeys(4, 2), plain, kinds=NO_HEADS),
}


def encoder(layers: int = 1, **options: Any) -> nn.Module:
    options = {"batch_first": True, "dropout": 0.0, **options}
    layer = nn.TransformerEncoderLayer(12, 3, 16, **options)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(12)) if layers > 1 else layer


def decoder(layers: int = 1, **options: Any) -> nn.Module:
    layer = nn.TransformerDecoderLayer(12, 3, 16, dropout=0.0, batch_first=True, **options)
    return nn.TransformerDecoder(layer, layers) if layers > 1 else layer


def transformer(**options: Any) -> nn.Module:
    return nn.Transformer(12, 3, 1, 1, 16, 0.0, **options)


def mixed(m: nn.Module, y: Tensor, *masks: Tensor) -> Any:
    return m(y, y.flip(1), *masks)


CONTAINERS = {
    "encoder layer": Case(encoder, plain),
    "encoder layer, norm first": Case(
        lambda: encoder(norm_first=True, activation="gelu", bias=False), plain
    ),
    "encoder, padding": Case(
        lambda: encoder(2),
        lambda m, y, mask: m(y, src_key_padding_mask=mask),
        lambda b, n: (padding(b, n),),
    ),
    "encoder, both masks": Case(lambda: encoder(2), plain, lambda b, n: (causal(n), padding(b, n))),
    "encoder, written causal mask": Case(
        lambda: encoder(2),
        lambda m, y: m(y, mask=causal(LENGTH)),
        other_sizes=False,
    ),
    "encoder, causal mask of its size": Case(
        lambda: encoder(2),
        lambda m, y: m(
            y,
            nn.Transformer.generate_square_subsequent_mask(y.size(1), dtype=y.dtype),
            is_causal=True,
        ),
    ),
    "encoder layer, batch second, padding": Case(
        lambda: encoder(batch_first=False),
        lambda m, y, mask: m(y, src_key_padding_mask=mask),
        lambda b, n: (padding(b, n),),
        batch_axis=1,
    ),
    "decoder layer": Case(lambda: decoder(norm_first=True), mixed),
    "decoder, masks": Case(
        lambda: decoder(2),
        lambda m, y, mask, pad: m(y, y.flip(1), tgt_mask=mask, memory_key_padding_mask=pad),
        lambda b, n: (causal(n), padding(b, n)),
    ),
    "transformer": Case(lambda: transformer(batch_first=True), mixed),
    "transformer, masks": Case(
        lambda: transformer(batch_first=True),
        lambda m, y, mask, pad: m(y, y.flip(1), tgt_mask=mask, src_key_padding_mask=pad),
        lambda b, n: (causal(n), padding(b, n)),
    ),
    "transformer, batch second": Case(transformer, mixed, batch_axis=1),
}

CASES = {**MODULES, **FUNCTIONS, **CONTAINERS}


def inputs(case: Case, batch: int = BATCH, length: int = LENGTH) -> tuple[Tensor, ...]:
    x = scores(batch, length, 6).transpose(0, case.batch_axis).contiguous()
    return (x, *case.masks(batch, length))


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # torch tells of its fast path
@pytest.mark.parametrize("name", CASES)
def test_gated_is_compact(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]
    model = Between(case).double().eval()
    gated = fxprune.auto_gate(model, inputs(case))
    assert_partition(gated)
    assert {g.kind for g in gated.groups} >= case.kinds
    assert fxprune.explain(gated).prunable_params > 0.9
    sizes = [(BATCH, LENGTH), (BATCH + 1, LENGTH), (BATCH, LENGTH + 2)]
    given = [inputs(case, *size) for size in (sizes if case.other_sizes else sizes[:1])]
    for training in (False, True):
        for x in given:
            one, other = copy.deepcopy(gated).train(training), copy.deepcopy(model).train(training)
            assert_close(run(one, *x), run(other, *x), f"open gates, training {training}")
    gated.eval().set_keep(random_keep(gated, 0.5))
    compact = assert_equal_to_compact(gated, *given[0])
    for x in given[1:]:
        assert_close(run(compact, *x), run(gated, *x), "compact at another size")


def test_a_wrong_mask_is_found() -> None:
    """The comparison of this file sees a mask that is left out."""
    case = CASES["padding"]
    model = Between(case).double().eval()
    x, mask = inputs(case)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(run(model, x, mask), run(model, x, torch.zeros_like(mask)))
