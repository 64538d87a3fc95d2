"""Other ways to write what op_samples.py covers: pruned or frozen, but never wrong and never a crash.

Each row is one spelling that a user's forward may contain; its name says which.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from sample_nets import Sample, module, weights
from torch import nn

__all__ = ["SPELLINGS"]

way = partial(Sample, "")
layer = partial(module, keys="")

SPELLINGS = {
    "unsafe_chunk": way(lambda net, y: torch.cat(torch.unsafe_chunk(y, 2, 1)[::-1], 1)),
    "unsafe_split method": way(lambda net, y: y.unsafe_split(3, 1)[0], out=3),
    "broadcast_to": way(
        lambda net, y: y + net.w.broadcast_to(8, 6, 6), extra=lambda: {"w": weights(8, 1, 1)}
    ),
    "torch.broadcast_to": way(
        lambda net, y: torch.broadcast_to(y.mean((2, 3), keepdim=True), (2, 8, 6, 6))
    ),
    "nn.Unflatten": way(
        lambda net, y: net.op(y.flatten(1)), extra=lambda: {"op": nn.Unflatten(1, (8, 6, 6))}
    ),
    "nn.Unflatten of a split": way(
        lambda net, y: net.op(y).flatten(1, 2), extra=lambda: {"op": nn.Unflatten(1, (2, 4))}
    ),
    "ConstantPad3d": layer(lambda: nn.ConstantPad3d((0, 0, 0, 0, 1, 2), 0.5), out=11),
    "ZeroPad3d": layer(lambda: nn.ZeroPad3d((0, 0, 0, 0, 1, 2)), out=11),
    "ZeroPad2d": layer(lambda: nn.ZeroPad2d(1)),
    "pad by less": way(lambda net, y: F.pad(y, (0, 0, 0, 0, 0, -3)), out=5),
    "as_strided literal": way(lambda net, y: y.as_strided((2, 8, 6, 6), (288, 36, 6, 1))),
    "torch.as_strided": way(lambda net, y: torch.as_strided(y, (2, 8, 6, 6), (288, 36, 6, 1))),
    "view size": way(lambda net, y: y.view(y.size())),
    "view tuple": way(lambda net, y: y.reshape((2, 8, -1)).reshape([2, 8, 6, 6])),
    "view kw": way(lambda net, y: torch.reshape(input=y, shape=(2, 8, 36)).view(2, 8, 6, 6)),
    "view_as": way(lambda net, y: y.flatten(2).view_as(y)),
    "reshape_as": way(lambda net, y: y.flatten(2).reshape_as(y)),
    "x.size calc": way(lambda net, y: y.view(y.size(0), 2, y.size(1) // 2, 6, 6).sum(1), out=4),
    "moveaxis": way(lambda net, y: torch.moveaxis(y, 1, 3).swapdims(1, 3)),
    "mT": way(lambda net, y: y.mT.sin()),
    "T": way(lambda net, y: y.T.T, kind="rows"),
    "H": way(lambda net, y: y.mH),
    "adjoint": way(lambda net, y: y.adjoint()),
    "rot90": way(lambda net, y: torch.rot90(y, 1, (2, 3))),
    "rot90 over channels": way(
        lambda net, y: torch.rot90(net.op(y), 2, (1, 2)),
        extra=lambda: {"op": nn.Conv2d(8, 6, 1)},
        out=6,
    ),
    "hstack": way(lambda net, y: torch.hstack([y, y]), out=16),
    "dstack": way(lambda net, y: torch.dstack([y, y])),
    "vstack": way(lambda net, y: torch.vstack([y, y])),
    "column_stack": way(lambda net, y: torch.column_stack([y, y]), kind="rows", out=16),
    "ravel": way(lambda net, y: torch.ravel(y).view(2, 8, 6, 6)),
    "narrow_copy": way(lambda net, y: y.narrow_copy(1, 2, 4), out=4),
    "torch.narrow": way(lambda net, y: torch.narrow(y, 1, 2, 4), out=4),
    "narrow kw": way(lambda net, y: torch.narrow(y, dim=1, start=2, length=4), out=4),
    "narrow neg": way(lambda net, y: y.narrow(1, -3, 2), out=2),
    "tensor_split list": way(lambda net, y: torch.tensor_split(y, (2, 5), 1)[1], out=3),
    "tensor_split method": way(lambda net, y: y.tensor_split(3, 1)[0], out=3),
    "hsplit": way(lambda net, y: torch.hsplit(y, 2)[0], out=4),
    "repeat_interleave": way(lambda net, y: y.repeat_interleave(2, 1), out=16),
    "torch.repeat_interleave": way(lambda net, y: torch.repeat_interleave(y, 2, dim=1), out=16),
    "unfold": way(lambda net, y: y.unfold(1, 2, 2).sum(-1), out=4),
    "F.unfold": way(lambda net, y: F.unfold(y, 1).view(2, 8, 6, 6)),
    "F.unfold 3x3": way(lambda net, y: F.unfold(y, 3, padding=1).view(2, 72, 6, 6), out=72),
    "channel_shuffle": layer(lambda: nn.ChannelShuffle(2)),
    "einsum": way(
        lambda net, y: torch.einsum("nchw,cd->ndhw", y, net.w),
        extra=lambda: {"w": weights(8, 6)},
        out=6,
    ),
    "einsum by channel": way(
        lambda net, y: torch.einsum("nchw,c->nchw", y, net.w), extra=lambda: {"w": weights(8)}
    ),
    "einsum attn": way(
        lambda net, y: torch.einsum("nij,njc->nic", torch.einsum("nic,njc->nij", y, y), y),
        kind="tokens",
    ),
    "tensordot": way(
        lambda net, y: torch.tensordot(y, net.w, ([1], [0])).permute(0, 3, 1, 2),
        extra=lambda: {"w": weights(8, 6)},
        out=6,
    ),
    "inner": way(
        lambda net, y: torch.inner(y, net.w), extra=lambda: {"w": weights(6, 8)}, out=6, kind="rows"
    ),
    "outer": way(
        lambda net, y: y * torch.outer(torch.ones(6).double(), net.w),
        extra=lambda: {"w": weights(8)},
        kind="rows",
    ),
    "kron": way(lambda net, y: torch.kron(y, torch.ones(1, 2).double()), out=16, kind="rows"),
    "grid of sampling points": way(
        lambda net, y: F.grid_sample(y, net.at, align_corners=False),
        extra=lambda: {"at": weights(2, 4, 4, 2)},
    ),
    "given random samples": way(
        lambda net, y: F.fractional_max_pool2d(
            y, 2, 3, _random_samples=torch.full((2, 8, 2), 0.5).double()
        )
    ),
    "view_as_real": way(lambda net, y: torch.view_as_real(torch.polar(y.exp(), y)).sum(-1)),
    "view_as_real_copy": way(
        lambda net, y: torch.ops.aten.view_as_real_copy(torch.polar(y.exp(), y)).sum(-1)
    ),
    "Bilinear": way(
        lambda net, y: net.op(y, y), extra=lambda: {"op": nn.Bilinear(8, 8, 6)}, out=6, kind="rows"
    ),
    "MHA": way(
        lambda net, y: net.op(y, y, y)[0],
        extra=lambda: {"op": nn.MultiheadAttention(8, 2, batch_first=True)},
        kind="tokens",
        counted=False,
    ),
    "SDPA": way(lambda net, y: F.scaled_dot_product_attention(y, y, y), kind="tokens"),
    "SDPA heads": way(
        lambda net, y: (
            F.scaled_dot_product_attention(*[y.view(2, 5, 2, 4).transpose(1, 2)] * 3)
            .transpose(1, 2)
            .reshape(2, 5, 8)
        ),
        kind="tokens",
    ),
    "LSTM": way(
        lambda net, y: net.op(y)[0],
        extra=lambda: {"op": nn.LSTM(8, 6, batch_first=True)},
        kind="tokens",
        out=6,
    ),
    "GRU": way(
        lambda net, y: net.op(y)[0],
        extra=lambda: {"op": nn.GRU(8, 6, batch_first=True)},
        kind="tokens",
        out=6,
    ),
    "RMSNorm": layer(lambda: nn.RMSNorm(8), kind="tokens"),
    "LRN": layer(lambda: nn.LocalResponseNorm(3)),
    "cosine": way(lambda net, y: y * F.cosine_similarity(y, y.sin(), 1).unsqueeze(1)),
    "Softmax2d": layer(nn.Softmax2d),
    "masked_fill": way(lambda net, y: y.masked_fill(y > 0.5, 0.1)),
    "triu": way(lambda net, y: y.triu()),
    "topk": way(lambda net, y: y.topk(3, 1)[0], out=3),
    "topk of pixels": way(lambda net, y: y.topk(3, -1)[0]),
    "where": way(lambda net, y: torch.where(y > 0, y, -1.0)),
    "scatter": way(lambda net, y: y.scatter(2, torch.zeros(2, 8, 1, 6, dtype=torch.long), 1.0)),
    "scatter_add": way(
        lambda net, y: y.scatter_add(2, torch.zeros(2, 8, 1, 6, dtype=torch.long), y)
    ),
    "index_add": way(lambda net, y: y.index_add(2, torch.tensor([0]), y[:, :, :1])),
    "index_fill": way(lambda net, y: y.index_fill(1, torch.tensor([0, 3]), 0.5)),
    "index_copy": way(lambda net, y: y.index_copy(1, torch.tensor([0, 3]), y[:, :2])),
    "masked_scatter": way(lambda net, y: y.masked_scatter(y > 0, y)),
    "embedding_bag": way(
        lambda net, y: y + net.op(torch.arange(6).view(6, 1)),
        extra=lambda: {"op": nn.EmbeddingBag(7, 8)},
        kind="rows",
    ),
    "fft": way(lambda net, y: torch.fft.rfft2(y).abs()),
    "fft over channels": way(lambda net, y: torch.fft.fft(y, dim=1).abs()),
    "slice ellipsis": way(lambda net, y: y[..., 2:5, :, :], out=3),
    "slice with None": way(lambda net, y: y[:, None][:, 0]),
    "slice with None after it": way(lambda net, y: y[:, 2:, None].squeeze(2), out=6),
    "slice neg": way(lambda net, y: y[:, -3:], out=3),
    "slice with negative stop": way(lambda net, y: y[:, 1:-1], out=6),
    "slice size": way(lambda net, y: y[:, : y.size(1) // 2], out=4),
    "slice step": way(lambda net, y: y[:, 1::2], out=4),
    "slice list": way(lambda net, y: y[:, [0, 2]], out=2),
    "slice spatial": way(lambda net, y: y[:, :, 1:3, ::2]),
    "slice one": way(lambda net, y: y[:, 3:4], out=1),
    "diagonal": way(lambda net, y: y.diagonal(0, 2, 3).unsqueeze(-1)),
    "diag_embed": way(lambda net, y: torch.diag_embed(y), kind="rows", out=8),
    "cdist": way(lambda net, y: torch.cdist(y, y) @ y, kind="tokens"),
    "logaddexp": way(lambda net, y: torch.logaddexp(y, y)),
    "bucketize": way(
        lambda net, y: y + torch.bucketize(y.detach(), torch.tensor([0.0, 1.0]).double())
    ),
    "one_hot": way(lambda net, y: y + F.one_hot(torch.arange(5) % 8, 8), kind="tokens"),
    "weightnorm out": way(
        lambda net, y: net.b(net.op(y)),
        extra=lambda: {
            "op": nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
            "b": nn.Conv2d(8, 8, 1),
        },
    ),
    "spectral": way(
        lambda net, y: net.op(y),
        extra=lambda: {"op": nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))},
        counted=False,
    ),
    # writes into a view of the value that is read, or before it is read
    "in place: view slice": way(lambda net, y: (y[:, :3].mul_(2), y)[1]),
    "in place: view flat": way(lambda net, y: (y.view(2, -1).add_(1), y)[1]),
    "in place: flat relu": way(lambda net, y: (y.flatten(2).relu_(), y)[1]),
    "in place: chunk": way(lambda net, y: (y.chunk(2, 1)[0].add_(1), y)[1]),
    "in place: unsqueeze": way(lambda net, y: (y.unsqueeze(1).sigmoid_(), y)[1]),
    "in place: a view made before": way(
        lambda net, y: [v := y.view(2, 8, 6, 6), y.sigmoid_(), v][-1]
    ),
    "in place: chain": way(lambda net, y: [y.mul_(2), y.add_(1), y.sigmoid_(), y][-1]),
    "in place: detach": way(lambda net, y: (y.detach().mul_(2), y)[1]),
    "in place: out=": way(lambda net, y: (torch.sigmoid(y, out=y), y)[1]),
    "in place: copy slice": way(lambda net, y: (y[:, :3].copy_(y[:, 3:6]), y)[1]),
    "in place: iadd": way(lambda net, y: y.add_(y.sin())),
    "in place: fill slice": way(lambda net, y: (y[:, 2:4].fill_(0.3), y)[1]),
    "in place: index_fill": way(lambda net, y: (y.index_fill_(1, torch.tensor([1]), 0.3), y)[1]),
    "in place: masked": way(lambda net, y: (y.masked_fill_(y > 0, 0.7), y)[1]),
    "in place: resize": way(lambda net, y: y.squeeze_()),
    "in place: transpose_": way(lambda net, y: y.transpose_(2, 3)),
    "in place: unsqueeze_": way(lambda net, y: (y.unsqueeze_(1), y.squeeze(1))[1]),
    "F.relu inplace": way(lambda net, y: (F.relu(y, inplace=True), y)[1]),
    "max two": way(lambda net, y: torch.max(y, y.sin())),
    "sum all": way(lambda net, y: y * y.sum()),
    "sum -1": way(lambda net, y: y * y.sum(dim=(1, 2, 3), keepdim=True)),
    "nansum": way(lambda net, y: y * y.nansum(1, keepdim=True)),
    "count_nonzero": way(lambda net, y: y * y.count_nonzero(1).unsqueeze(1)),
    "size mul": way(lambda net, y: y * y.size(1)),
    "size scale": way(lambda net, y: y * (y.shape[1] ** -0.5)),
    "numel": way(lambda net, y: y / y.numel()),
    "own mean": way(lambda net, y: y.sum(1, keepdim=True) / y.size(1) * y),
    "arange size": way(lambda net, y: y + torch.arange(8).view(1, 8, 1, 1)),
    "zeros lit": way(lambda net, y: y + torch.zeros(2, 8, 1, 1).double()),
    "new_zeros lit": way(lambda net, y: y + y.new_zeros(2, 8, 6, 6)),
    "new_ones shape": way(lambda net, y: y + y.new_ones(y.shape)),
    "new_zeros size1": way(lambda net, y: torch.cat([y, y.new_zeros(2, 3, 6, 6)], 1), out=11),
    "cat zeros": way(lambda net, y: torch.cat([y, torch.zeros(2, 3, 6, 6).double()], 1), out=11),
    "zeros_like slice": way(lambda net, y: torch.cat([y, torch.zeros_like(y[:, :3])], 1), out=11),
    "expand -1": way(
        lambda net, y: y + net.w.expand(2, -1, 6, 6), extra=lambda: {"w": weights(1, 8, 1, 1)}
    ),
    "expand tuple": way(
        lambda net, y: y + net.w.expand((2, 8, 6, 6)), extra=lambda: {"w": weights(1, 8, 1, 1)}
    ),
    "expand kw": way(
        lambda net, y: y + net.w.expand(size=(2, 8, 6, 6)), extra=lambda: {"w": weights(1, 8, 1, 1)}
    ),
    "expand size": way(
        lambda net, y: y + net.w.expand(y.size(0), y.size(1), 6, 6),
        extra=lambda: {"w": weights(1, 1, 1, 1)},
    ),
    "expand bcast lit": way(
        lambda net, y: y + net.w.expand(2, 8, 6, 6), extra=lambda: {"w": weights(1, 1, 1, 1)}
    ),
    "repeat lit": way(
        lambda net, y: y + net.w.repeat(1, 8, 1, 1), extra=lambda: {"w": weights(1, 1, 1, 1)}
    ),
    "F.fold": way(lambda net, y: F.fold(F.unfold(y, 2, stride=2), (6, 6), 2, stride=2)),
    "aten view": way(lambda net, y: torch.ops.aten.view(y, [2, 8, 36]).view(2, 8, 6, 6)),
    "aten split": way(lambda net, y: torch.ops.aten.split.Tensor(y, 3, 1)[0], out=3),
    "aten slice": way(lambda net, y: torch.ops.aten.slice(y, 1, 2, 5), out=3),
    "aten expand": way(
        lambda net, y: y + torch.ops.aten.expand(net.w, [2, 8, 6, 6]),
        extra=lambda: {"w": weights(1, 8, 1, 1)},
    ),
    "aten pad": way(lambda net, y: torch.ops.aten.constant_pad_nd(y, [0, 0, 0, 0, 1, 2]), out=11),
    "aten ln": way(
        lambda net, y: torch.ops.aten.layer_norm(y, [8], net.w, net.w),
        extra=lambda: {"w": weights(8)},
        kind="tokens",
    ),
    "aten nln": way(
        lambda net, y: torch.ops.aten.native_layer_norm(y, [8], net.w, net.w, 1e-5)[0],
        extra=lambda: {"w": weights(8)},
        kind="tokens",
    ),
    "aten conv": way(
        lambda net, y: torch.ops.aten.conv2d(y, net.w, None, [1, 1], [0, 0], [1, 1], 8),
        extra=lambda: {"w": weights(8, 1, 1, 1)},
    ),
    "torch.conv2d": way(
        lambda net, y: torch.conv2d(y, net.w, groups=8), extra=lambda: {"w": weights(8, 1, 1, 1)}
    ),
    "torch.conv dw pos": way(
        lambda net, y: torch.conv2d(y, net.w, None, 1, 0, 1, 8),
        extra=lambda: {"w": weights(8, 1, 1, 1)},
    ),
    "torch.convolution": way(
        lambda net, y: torch.convolution(y, net.w, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 8),
        extra=lambda: {"w": weights(8, 1, 1, 1)},
    ),
    "conv_transpose dw": way(
        lambda net, y: F.conv_transpose2d(y, net.w, groups=8),
        extra=lambda: {"w": weights(8, 1, 2, 2)},
    ),
    "group_norm1": layer(lambda: nn.GroupNorm(1, 8)),
    "group_norm8": layer(lambda: nn.GroupNorm(8, 8)),
    "F.batch_norm": way(
        lambda net, y: F.batch_norm(
            y, net.op.running_mean, net.op.running_var, net.op.weight, net.op.bias
        ),
        extra=lambda: {"op": nn.BatchNorm2d(8)},
    ),
    "F.instance_norm": way(lambda net, y: F.instance_norm(y)),
    "F.layer_norm 3": way(lambda net, y: F.layer_norm(y, (8, 6, 6))),
    "F.layer_norm size": way(lambda net, y: F.layer_norm(y, y.shape[1:])),
    "F.layer_norm kw": way(
        lambda net, y: F.layer_norm(y, normalized_shape=[8], weight=net.w),
        extra=lambda: {"w": weights(8)},
        kind="tokens",
    ),
    "LayerNorm over three axes": way(
        lambda net, y: net.op(y), extra=lambda: {"op": nn.LayerNorm((8, 6, 6))}
    ),
    "LayerNorm called twice": way(
        lambda net, y: net.op(net.op(y) + y), extra=lambda: {"op": nn.LayerNorm(8)}, kind="tokens"
    ),
    "transpose conv odd": way(
        lambda net, y: net.op(y), extra=lambda: {"op": nn.ConvTranspose2d(8, 8, 3, groups=4)}
    ),
    "padding circular": layer(lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
    "lazy size view": way(
        lambda net, y: (
            y.flatten(2).transpose(1, 2).reshape(2, 36, 8).transpose(1, 2).reshape(2, 8, 6, 6)
        )
    ),
    "checkerboard": way(lambda net, y: torch.stack([y[:, :4], y[:, 4:]], 2).flatten(1, 2)),
    "swin window": way(
        lambda net, y: (
            y.view(2, 8, 2, 3, 2, 3)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(-1, 9, 8)
            .view(2, 2, 2, 3, 3, 8)
            .permute(0, 5, 1, 3, 2, 4)
            .reshape(2, 8, 6, 6)
        )
    ),
}
