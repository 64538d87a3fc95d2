"""`nn.MultiheadAttention` written out: projections, heads, weights, values, as plain calls.

The module keeps its parameters and their names; only its forward is replaced, so that the widths of
query and key, of value, and the number of heads are sizes in the graph.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["explicit_attention", "prepare_attention"]

_DROPOUT = "attention_dropout"


def prepare_attention(module: nn.MultiheadAttention) -> None:
    """Give the module its dropout as a module, which knows of training and evaluation itself."""
    if module.dropout > 0 and not hasattr(module, _DROPOUT):
        module.add_module(_DROPOUT, nn.Dropout(module.dropout).train(module.training))


def explicit_attention(
    module: nn.MultiheadAttention,
    query: Any,
    key: Any,
    value: Any,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Compute what the module's forward computes.

    Parameters
    ----------
    module : nn.MultiheadAttention
    query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        As for its forward; `is_causal` is a hint that `attn_mask` makes needless.

    Returns
    -------
    output, weights
        Weights are None unless `need_weights`.
    """
    batched = query.dim() == 3
    same = query is key, key is value
    tensors = [_batch_first(module, t, batched) for t in (query, key, value)]
    q, k, v = _project(module, tensors, same)
    mask = _mask(module, q, attn_mask, key_padding_mask, batched)
    extra = 0
    if module.bias_k is not None and module.bias_v is not None:
        # added to zeros rather than expanded, so that no size is in the graph
        k = torch.cat([k, torch.zeros_like(k[:, :1]) + module.bias_k], 1)
        v = torch.cat([v, torch.zeros_like(v[:, :1]) + module.bias_v], 1)
        extra += 1
    if module.add_zero_attn:
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        extra += 1
    if mask is not None and extra:
        mask = F.pad(mask, (0, extra))
    heads = (module.num_heads, module.head_dim)
    q, k, v = (t.unflatten(-1, heads).transpose(1, 2) for t in (q, k, v))
    attended, weights = _attend(module, q, k, v, mask, need_weights)
    y = module.out_proj(attended.transpose(1, 2).flatten(2))
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not batched:
        return y.squeeze(0), None if weights is None else weights.squeeze(0)
    return y if module.batch_first else y.transpose(0, 1), weights


def _batch_first(module: nn.MultiheadAttention, x: Any, batched: bool) -> Any:
    if not batched:
        return x.unsqueeze(0)
    return x if module.batch_first else x.transpose(0, 1)


def _project(module: Any, given: list[Any], same: tuple[bool, bool]) -> list[Any]:
    """Return query, key and value after their projections."""
    packed_bias, q_is_k, k_is_v = module.in_proj_bias, *same
    if module.in_proj_weight is not None and q_is_k and k_is_v:
        return list(F.linear(given[0], module.in_proj_weight, packed_bias).chunk(3, -1))
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.chunk(3))
    else:
        weights = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    biases = [None] * 3 if packed_bias is None else list(packed_bias.chunk(3))
    return [F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True)]


def _mask(module: Any, query: Any, attn_mask: Any, padding: Any, batched: bool) -> Any:
    """Join both masks to one of floats, shaped to be added to (batch, heads, queries, keys)."""
    mask = None if attn_mask is None else _floats(attn_mask, query)
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, module.num_heads))
    if padding is not None:
        floats = _floats(padding, query)
        floats = floats[:, None, None, :] if batched else floats[None, None, None, :]
        mask = floats if mask is None else mask + floats
    return mask


def _floats(mask: Any, query: Any) -> Any:
    if mask.dtype != torch.bool:
        return mask
    zeros = torch.zeros_like(mask, dtype=query.dtype)
    return zeros.masked_fill(mask, float("-inf"))


def _attend(module: Any, q: Any, k: Any, v: Any, mask: Any, need_weights: bool) -> tuple[Any, Any]:
    scale = module.head_dim**-0.5
    if not need_weights and module.dropout == 0:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale), None
    scores = torch.matmul(q * scale, k.transpose(-2, -1))
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    if module.dropout > 0:
        weights = getattr(module, _DROPOUT)(weights)
    return torch.matmul(weights, v), weights if need_weights else None
