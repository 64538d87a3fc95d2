"""The forwards of torch's transformer containers, written so that symbolic tracing can follow them.

The originals look at the values of masks to find out whether they are causal, which is a hint for a
faster kernel and changes no result, and ask masks for things that a traced value is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["CONTAINERS", "readable_forward"]

CONTAINERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
"""Modules of torch that hold layers, and hide them from tracing."""


def readable_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a function that computes what calling a module computes, hooks aside.

    Parameters
    ----------
    module : nn.Module

    Returns
    -------
    callable
        Takes what the module's forward takes; its own forward, but for some of `CONTAINERS`.
    """
    form = _FORMS.get(type(module))
    return module.forward if form is None else lambda *args, **kwargs: form(module, *args, **kwargs)


def _encoder(
    module: Any,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool | None = None,
) -> Any:
    for layer in module.layers:
        src = layer(
            src,
            src_mask=mask,
            is_causal=bool(is_causal),
            src_key_padding_mask=src_key_padding_mask,
        )
    return src if module.norm is None else module.norm(src)


def _encoder_layer(
    module: Any,
    src: Any,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: bool = False,
) -> Any:
    def attend(x: Any) -> Any:
        masks = {"attn_mask": src_mask, "key_padding_mask": src_key_padding_mask}
        return module.dropout1(module.self_attn(x, x, x, need_weights=False, **masks)[0])

    def feed(x: Any) -> Any:
        hidden = module.dropout(module.activation(module.linear1(x)))
        return module.dropout2(module.linear2(hidden))

    if module.norm_first:
        src = src + attend(module.norm1(src))
        return src + feed(module.norm2(src))
    src = module.norm1(src + attend(src))
    return module.norm2(src + feed(src))


# For None, the default of these hints, the forward looks at the mask's values.


def _decoder(
    module: Any, tgt: Any, memory: Any, *masks: Any, tgt_is_causal: Any = False, **more: Any
) -> Any:
    return module.forward(tgt, memory, *masks, tgt_is_causal=bool(tgt_is_causal), **more)


def _transformer(
    module: Any,
    src: Any,
    tgt: Any,
    *masks: Any,
    src_is_causal: Any = False,
    tgt_is_causal: Any = False,
    **more: Any,
) -> Any:
    hints = {"src_is_causal": bool(src_is_causal), "tgt_is_causal": bool(tgt_is_causal)}
    return module.forward(src, tgt, *masks, **hints, **more)


_FORMS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Transformer: _transformer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerDecoder: _decoder,
}
