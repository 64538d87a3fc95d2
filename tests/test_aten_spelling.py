"""What torch.export writes, spelled with torch's functions and methods: it must compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune._compat import OpOverload, operator_by_name
from fxprune.capture.aten import spell


def r(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


END = 2**63 - 1
IMAGE, ROWS, INDEX = r(2, 4, 6, 6), r(5, 8), torch.tensor([2, 0])

CASES: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "view": ("view.default", (IMAGE, [2, 2, 2, 36]), {}),
    "reshape": ("reshape.default", (IMAGE, [2, -1]), {}),
    "expand": ("expand.default", (r(1, 8), [5, 8]), {}),
    "unflatten": ("unflatten.int", (ROWS, 1, [2, 4]), {}),
    "slice": ("slice.Tensor", (IMAGE, 1, 1, END), {}),
    "slice from the end": ("slice.Tensor", (IMAGE, -1, 0, -2, 2), {}),
    "select": ("select.int", (IMAGE, 1, -1), {}),
    "index": ("index.Tensor", (IMAGE, [None, INDEX]), {}),
    "split": ("split.Tensor", (ROWS, 3, 1), {}),
    "split_with_sizes": ("split_with_sizes.default", (ROWS, [1, 7], -1), {}),
    "chunk": ("chunk.default", (ROWS, 2, 1), {}),
    "pad": ("pad.default", (IMAGE, [1, 2, 0, 1], "reflect"), {}),
    "constant_pad_nd": ("constant_pad_nd.default", (IMAGE, [1, 2], 0.5), {}),
    "permute": ("permute.default", (IMAGE, [0, 2, 3, 1]), {}),
    "to dtype": ("to.dtype", (ROWS, torch.float32), {}),
    "to layout": ("to.dtype_layout", (ROWS,), {"dtype": torch.float32, "layout": torch.strided}),
    "_to_copy": ("_to_copy.default", (ROWS,), {"dtype": torch.float16}),
    "einsum": ("einsum.default", ("ij,kj->ik", [ROWS, ROWS]), {}),
    "meshgrid": ("meshgrid.indexing", ([r(2), r(3)],), {"indexing": "xy"}),
    "arange": ("arange.default", (5,), {"device": torch.device("cpu"), "pin_memory": False}),
    "new_zeros": ("new_zeros.default", (ROWS, [2, 3]), {"pin_memory": False}),
    "conv": ("conv2d.default", (IMAGE, r(8, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 4), {}),
    "conv padded by name": ("conv2d.padding", (IMAGE, r(8, 4, 3, 3), r(8), [1, 1], "same"), {}),
    "transposed": (
        "conv_transpose2d.input",
        (IMAGE, r(4, 3, 2, 2), r(6), [2, 2], [0, 0], [1, 1], 2, [1, 1]),
        {},
    ),
    "convolution": (
        "convolution.default",
        (IMAGE, r(8, 2, 3, 3), r(8), [2, 2], [1, 1], [2, 2], False, [0, 0], 2),
        {},
    ),
    "convolution transposed": (
        "convolution.default",
        (IMAGE, r(4, 3, 2, 2), None, [2, 2], [0, 0], [2, 2], True, [1, 1], 2),
        {},
    ),
    "linear": ("linear.default", (ROWS, r(3, 8)), {}),
    "embedding": ("embedding.default", (r(4, 3), INDEX, 2), {}),
    "layer_norm": ("layer_norm.default", (ROWS, [8], r(8), r(8), 1e-3, False), {}),
    "rms_norm": ("rms_norm.default", (ROWS, [8], r(8)), {}),
    "group_norm": ("group_norm.default", (IMAGE, 2, r(4), r(4)), {}),
    "batch_norm": (
        "batch_norm.default",
        (IMAGE, r(4), -r(4), 2 * r(4), 3 * r(4), False, 0.1, 1e-5, False),
        {},
    ),
    "instance_norm": (
        "instance_norm.default",
        (IMAGE, r(4), -r(4), None, None, True, 0.1, 1e-5, False),
        {},
    ),
    "dropout": ("dropout.default", (ROWS, 0.3, False), {}),
    "adaptive pool": ("adaptive_avg_pool2d.default", (IMAGE, [2, 3]), {}),
    "max_pool2d": ("max_pool2d.default", (IMAGE, [3, 3], [2, 2], [1, 1]), {}),
    "silu": ("silu.default", (ROWS,), {}),
    "hardtanh": ("hardtanh.default", (ROWS, 0.2, 0.4), {}),
    "leaky_relu": ("leaky_relu.default", (-ROWS, 0.3), {}),
    "gelu": ("gelu.default", (ROWS,), {"approximate": "tanh"}),
    "upsample to a size": ("upsample_bilinear2d.vec", (IMAGE, [9, 7], False, None), {}),
    "upsample by a factor": ("upsample_nearest2d.vec", (IMAGE, None, [2.0, 2.0]), {}),
    "attention": (
        "scaled_dot_product_attention.default",
        (IMAGE, IMAGE, IMAGE, None, 0.0, True),
        {"scale": 0.3},
    ),
    "add": ("add.Tensor", (ROWS, ROWS), {"alpha": 2}),
    "divide": ("div.Tensor_mode", (ROWS, 0.3), {"rounding_mode": "floor"}),
    "sum": ("sum.dim_IntList", (ROWS, [1], True), {}),
    "constant": ("lift_fresh_copy.default", (ROWS,), {}),
    "size": ("sym_size.int", (IMAGE, 1), {}),
}


def test_spelled_calls_compute_the_same() -> None:
    for name, (operator, args, kwargs) in CASES.items():
        target = operator_by_name(f"aten.{operator}")
        rank = args[0].dim() if isinstance(args[0], Tensor) else 0
        op, spelled, new_args, new_kwargs = spell(target, args, kwargs, rank)
        assert not isinstance(spelled, OpOverload), name
        function = getattr(type(new_args[0]), spelled) if op == "call_method" else spelled
        torch.testing.assert_close(
            as_list(function(*new_args, **new_kwargs)),
            as_list(target(*args, **kwargs)),
            rtol=0,
            atol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


@pytest.mark.parametrize("name", ["silu_", "relu_", "add_", "dropout_"])
def test_writing_in_place_stays_in_place(name: str) -> None:
    more = {"add_": (1.0,), "dropout_": (0.5, True)}.get(name, ())
    target = operator_by_name(f"aten.{name}.{'Tensor' if name == 'add_' else 'default'}")
    x = r(3, 4) - 0.5
    before = x.clone()
    op, spelled, args, kwargs = spell(target, (x, *more), {}, 2)
    function = getattr(Tensor, spelled) if op == "call_method" else spelled
    assert function(*args, **kwargs) is x
    assert not torch.equal(x, before)


def test_what_has_no_spelling_stays_what_it_is() -> None:
    target = operator_by_name("aten._softmax.default")
    assert spell(target, (ROWS, 1, False), {}, 2)[:2] == ("call_function", target)
