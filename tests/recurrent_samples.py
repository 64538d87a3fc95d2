"""Rows of op_samples.py for recurrent layers and their first states."""

from __future__ import annotations

from typing import Any

import torch
from sample_nets import Sample, frozen, weights
from torch import Tensor, nn

__all__ = ["FACTORIES", "RECURRENT"]


def layer(keys: str, make: Any, how: Any = lambda net, y: net.op(y)[0], **kwargs: Any) -> Sample:
    return Sample(keys, how, kind="tokens", extra=lambda: {"op": make()}, **kwargs)


def by_steps(net: Any, y: Tensor) -> Tensor:
    """Run a cell over the sequence, from no state."""
    states = [net.op(y[:, 0])]
    for t in range(1, 5):
        states.append(net.op(y[:, t], states[-1]))
    return torch.stack(states, 1)


def by_lstm_steps(net: Any, y: Tensor) -> Tensor:
    """Run an LSTM's cell over the sequence, from a state of zeros."""
    h = c = torch.zeros(y.shape[0], 6, dtype=y.dtype)
    states = []
    for t in range(5):
        h, c = net.op(y[:, t], (h, c))
        states.append(h)
    return torch.stack([*states[1:], c], 1)


def zeros(y: Tensor, count: int, width: int) -> Tensor:
    return torch.zeros(count, y.shape[0], width, dtype=y.dtype)


def written_out(net: Any, y: Tensor) -> Tensor:
    return torch.gru(y, zeros(y, 1, 6), [net.w, net.u], False, 1, 0.0, False, False, True)[0]


RECURRENT = [
    layer("lstm", lambda: nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), out=12),
    layer("lstm", lambda: nn.LSTM(8, 6, bias=False), out=6),
    layer("lstm", lambda: nn.LSTM(8, 6, 2, proj_size=5, bidirectional=True), out=10),
    layer(
        "lstm",
        lambda: nn.LSTM(8, 6, 2, batch_first=True),
        lambda net, y: torch.cat([net.op(y)[1][0][-1:], net.op(y)[1][1][:1]], 1),
        out=6,
    ),
    layer(
        "lstm zeros",
        lambda: nn.LSTM(8, 6, 2, batch_first=True),
        lambda net, y: net.op(y, (zeros(y, 2, 6), zeros(y, 2, 6)))[0],
        out=6,
    ),
    layer(
        "lstm",
        lambda: nn.LSTM(3, 8, batch_first=True),
        lambda net, y: net.op(y[..., :3], (y.mean(1)[None], y.amax(1)[None]))[0],
    ),
    layer(
        "lstm", lambda: nn.LSTM(8, 6), lambda net, y: net.op(y[:, 0])[0].unsqueeze(1), out=6
    ),  # without a batch
    layer("gru", lambda: nn.GRU(8, 6, 3, batch_first=True), out=6),
    layer("gru", lambda: nn.GRU(8, 6, bidirectional=True, bias=False), out=12),
    layer(
        "gru",
        lambda: nn.GRU(8, 6, 2, batch_first=True, bidirectional=True),
        lambda net, y: net.op(y)[1].transpose(0, 1).flatten(1).unsqueeze(1),
        out=24,
    ),
    Sample(
        "gru zeros",
        written_out,
        kind="tokens",
        out=6,
        extra=lambda: {"w": weights(18, 8), "u": weights(18, 6)},
    ),
    layer("rnn_tanh", lambda: nn.RNN(8, 6, 2), out=6),
    layer("rnn_relu", lambda: nn.RNN(8, 6, nonlinearity="relu", batch_first=True), out=6),
    layer("lstm_cell zeros", lambda: nn.LSTMCell(8, 6), by_lstm_steps, out=6),
    layer("gru_cell", lambda: nn.GRUCell(8, 6), by_steps, out=6),
    layer("rnn_tanh_cell", lambda: nn.RNNCell(8, 6, bias=False), by_steps, out=6),
    layer("rnn_relu_cell", lambda: nn.RNNCell(8, 6, nonlinearity="relu"), by_steps, out=6),
    frozen(
        "lstm",
        "runs over it as over time or samples",
        lambda net, y: net.op(y.transpose(1, 2))[0].transpose(1, 2),
        kind="tokens",
        extra=lambda: {"op": nn.LSTM(5, 5, batch_first=True)},
    ),
]

FACTORIES = [
    Sample("zeros", lambda net, y: y + torch.zeros(y.shape[0], 8, 6, 6)),
    Sample("ones", lambda net, y: y + torch.ones((y.shape[0], 8, 6, 6))),
    Sample("full", lambda net, y: y + torch.full((y.shape[0], 8, 6, 6), 2.0)),
    Sample("empty", lambda net, y: y + torch.empty(y.shape[0], 8, 6, 6).fill_(1.0)),
]
