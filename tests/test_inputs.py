from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.errors import ConfigError, InputError
from fxprune.inputs import (
    batch_size,
    check_count,
    fit_inputs,
    flatten_outputs,
    iter_leaves,
    map_leaves,
    map_tensors,
    normalize_inputs,
    to_like,
    with_batch,
)

Pair = namedtuple("Pair", ["first", "second"])


@dataclass(frozen=True)
class Boxes:
    boxes: Tensor
    scores: Tensor | None = None
    count: int = field(default=0, init=False)


class Output(OrderedDict):  # type: ignore[type-arg]
    """A mapping with a type of its own, as libraries return it."""


def test_a_tensor_is_the_only_positional_argument():
    x = torch.zeros(2, 3)
    args, kwargs = normalize_inputs(x)
    assert args[0] is x
    assert len(args) == 1
    assert kwargs == {}


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_tuple_or_list_holds_the_positional_arguments(kind):
    x = torch.zeros(2)
    args, kwargs = normalize_inputs(kind([x, 3, {"a": x}]))
    assert isinstance(args, tuple)
    assert args[0] is x
    assert args[1] == 3
    assert args[2]["a"] is x
    assert kwargs == {}


def test_a_mapping_holds_the_keyword_arguments():
    x = torch.zeros(2)
    args, kwargs = normalize_inputs(Output(image=x, scale=2.0))
    assert args == ()
    assert type(kwargs) is dict
    assert kwargs["image"] is x
    assert kwargs["scale"] == 2.0


@pytest.mark.parametrize(
    ("nonsense", "message"),
    [
        (None, "must be a tensor, a tuple, a list or a dict"),
        ("image", "must be a tensor"),
        (3, "must be a tensor"),
        (np.zeros(3), "must be a tensor[\\s\\S]*ndarray"),
        (nn.Linear(2, 2), "must be a tensor[\\s\\S]*Linear"),
        ((), "hold no tensor"),
        ({}, "hold no tensor"),
        ((1, "a", [None]), "hold no tensor"),
        ({"image": np.zeros(3)}, "hold no tensor"),
        ({0: torch.zeros(2)}, "keys of example_inputs must be argument names[\\s\\S]*key 0"),
    ],
)
def test_nonsense_is_an_input_error(nonsense, message):
    with pytest.raises(InputError, match=message):
        normalize_inputs(nonsense)


def test_batch_size_is_that_of_the_first_tensor_with_a_dimension():
    assert batch_size(normalize_inputs((torch.tensor(1.0), torch.zeros(4, 7), torch.zeros(9)))) == 4
    assert batch_size(normalize_inputs({"a": [torch.zeros(3, 1)]})) == 3
    assert batch_size(normalize_inputs(torch.tensor(1.0))) is None


def test_with_batch_resizes_what_carries_the_batch_and_nothing_else():
    mask, scale = torch.zeros(5, 5), torch.tensor(2.0)
    image, ids = torch.ones(2, 3, 4), torch.tensor([[1, 2], [3, 4]])
    inputs = ((image, {"ids": ids, "mask": mask}, "mode"), {"scale": scale})
    (new_image, rest, mode), kwargs = with_batch(inputs, 5)
    assert new_image.shape == (5, 3, 4)
    assert torch.equal(rest["ids"], ids[[0, 1, 0, 1, 0]])
    assert rest["mask"] is mask
    assert mode == "mode"
    assert kwargs["scale"] is scale
    assert torch.equal(image, torch.ones(2, 3, 4)), "the given tensor was changed"


def test_with_batch_draws_normal_values_that_differ_from_row_to_row():
    inputs = normalize_inputs((torch.zeros(2, 4000), torch.zeros(2, 4000, dtype=torch.complex64)))
    (x, z), _ = with_batch(inputs, 3)
    assert abs(float(x.mean())) < 0.05
    assert abs(float(x.std()) - 1) < 0.05
    assert not torch.equal(x[0], x[1])
    assert z.dtype == torch.complex64
    assert float(z.imag.std()) > 0.5


def test_with_batch_is_repeatable_and_leaves_the_random_state_alone():
    inputs = normalize_inputs(torch.zeros(1, 8))
    before = torch.get_rng_state()
    first, second = with_batch(inputs, 4)[0][0], with_batch(inputs, 4)[0][0]
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_with_batch_keeps_the_dtype(dtype):
    assert with_batch(normalize_inputs(torch.zeros(2, 3, dtype=dtype)), 1)[0][0].dtype == dtype


def test_with_batch_can_repeat_the_rows():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    resized = with_batch(normalize_inputs(x), 3, fill="repeat")[0][0]
    assert torch.equal(resized, x[[0, 1, 0]])


def test_with_batch_keeps_inputs_that_have_the_size_already():
    inputs = normalize_inputs(torch.rand(4, 2))
    assert with_batch(inputs, 4) is inputs


@pytest.mark.parametrize("n", [0, -1, 2.0, True, None])
def test_with_batch_refuses_a_bad_size(n):
    with pytest.raises(ConfigError, match="'n' argument must be an integer >= 1"):
        with_batch(normalize_inputs(torch.zeros(2)), n)


@pytest.mark.parametrize(
    ("x", "seen"), [(torch.tensor(1.0), "only scalars"), (torch.zeros(0, 3), "size 0")]
)
def test_with_batch_refuses_inputs_without_a_batch(x, seen):
    with pytest.raises(InputError, match=f"no batch to resize[\\s\\S]*{seen}"):
        with_batch(normalize_inputs(x), 2)


def test_to_like_converts_floats_only():
    ids, x = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    (new_ids, new_x), _ = to_like(normalize_inputs((ids, x)), torch.float64, "cpu")
    assert new_ids is ids
    assert new_x.dtype == torch.float64


def test_to_like_moves_everything():
    moved = to_like(
        normalize_inputs((torch.zeros(2, dtype=torch.int64), torch.zeros(2))), None, "meta"
    )
    assert [x.device.type for x in moved[0]] == ["meta", "meta"]
    assert moved[0][1].dtype == torch.float32


def test_to_like_refuses_a_dtype_that_is_not_floating():
    with pytest.raises(ConfigError, match="floating dtype[\\s\\S]*int64"):
        to_like(normalize_inputs(torch.zeros(2)), torch.int64)


def test_fit_inputs_follows_the_parameters():
    inputs = normalize_inputs(torch.zeros(2, 3))
    assert fit_inputs(nn.Linear(3, 3).double(), inputs)[0][0].dtype == torch.float64
    assert fit_inputs(nn.Linear(3, 3, device="meta"), inputs)[0][0].device.type == "meta"
    assert fit_inputs(nn.ReLU(), inputs) is inputs
    mixed = nn.Sequential(nn.Linear(3, 3).half(), nn.Linear(3, 3))
    assert fit_inputs(mixed, inputs)[0][0].dtype == torch.float32


def test_flatten_outputs_names_every_tensor():
    a, b, c, d, e = (torch.full((1,), float(i)) for i in range(5))
    out = {"x": (a, [b]), "pair": Pair(c, None), "boxes": Boxes(d, e)}
    found = flatten_outputs(out)
    assert [path for path, _ in found] == [
        "output['x'][0]",
        "output['x'][1][0]",
        "output['pair'].first",
        "output['boxes'].boxes",
        "output['boxes'].scores",
        "output['boxes'].count",
    ]
    assert [float(tensor) for _, tensor in found] == [0, 1, 2, 3, 4, 0]


def test_flatten_outputs_of_single_values():
    x = torch.zeros(2)
    assert flatten_outputs(x) == [("output", x)]
    assert flatten_outputs(None) == []
    ((path, value),) = flatten_outputs(0.1)
    assert path == "output"
    assert value.dtype == torch.float64
    assert float(value) == 0.1


def test_flatten_outputs_takes_torch_return_types():
    paths = [path for path, _ in flatten_outputs(torch.max(torch.rand(2, 3), dim=1))]
    assert paths == ["output[0]", "output[1]"]


@pytest.mark.parametrize("leaf", ["text", object(), np.zeros(2)])
def test_flatten_outputs_refuses_what_it_cannot_compare(leaf):
    with pytest.raises(ConfigError, match=r"may hold tensors, numbers and None only[\s\S]*\[1\]"):
        flatten_outputs((torch.zeros(1), leaf))


def test_map_tensors_rebuilds_the_same_containers():
    boxes = Boxes(torch.ones(2))
    object.__setattr__(boxes, "count", 7)
    tree = (Pair(torch.ones(1), "a"), [boxes], Output(k=torch.ones(3)), None)
    doubled = map_tensors(tree, lambda tensor: tensor * 2)
    assert isinstance(doubled[0], Pair)
    assert doubled[0].second == "a"
    assert isinstance(doubled[1][0], Boxes)
    assert doubled[1][0].count == 7
    assert [float(x.sum()) for _, x in iter_leaves(doubled) if isinstance(x, Tensor)] == [2, 4, 6]
    assert float(boxes.boxes.sum()) == 2, "the given tree was changed"


def test_map_leaves_visits_in_the_order_of_iter_leaves():
    tree = {"b": (1, [2, Pair(3, 4)]), "a": Boxes(torch.zeros(1), None)}
    visited = []
    map_leaves(tree, visited.append)
    leaves = [leaf for _, leaf in iter_leaves(tree)]
    assert len(visited) == len(leaves)
    assert all(a is b for a, b in zip(visited, leaves, strict=True))


@pytest.mark.parametrize("value", [0, "3", 1.5, False])
def test_check_count_refuses(value):
    with pytest.raises(ConfigError, match="'threads' argument must be an integer >= 1"):
        check_count("threads", value)
    assert check_count("threads", 2) == 2
