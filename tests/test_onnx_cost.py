from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from fxprune.errors import InputError, LoadError
from fxprune.export import export_onnx
from fxprune.measure import count_macs
from fxprune.onnx_cost import onnx_cost, onnx_inputs


class Mixed(nn.Module):
    """Every operator that is counted, with groups, a stride and a batch of matrices."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.up(self.grouped(self.wide(x))).flatten(2)
        return self.head((x @ x.transpose(1, 2)).mean(1))


def save_graph(path, nodes, inputs, outputs, initializers=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, path)
    return path


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.mark.parametrize("dynamic", [False, True])
def test_macs_are_those_counted_in_torch(tmp_path, dynamic):
    model, x = Mixed().eval(), torch.zeros(1, 3, 8, 8)
    path = export_onnx(model, tmp_path / "net.onnx", x, dynamic_batch=dynamic).path
    found = onnx_cost(path, [tuple(x.shape)])
    assert found.macs == count_macs(model, x)
    assert found.params == sum(p.numel() for p in model.parameters())
    assert found.file_bytes == path.stat().st_size
    assert found.uncounted == ()


def test_a_free_batch_counts_as_given(tmp_path):
    model = Mixed().eval()
    path = export_onnx(model, tmp_path / "net.onnx", torch.zeros(1, 3, 8, 8)).path
    assert onnx_cost(path, [(4, 3, 8, 8)]).macs == count_macs(model, torch.zeros(4, 3, 8, 8))


def test_transposed_products_sum_over_their_other_axis(tmp_path):
    node = helper.make_node("Gemm", ["a", "b"], ["y"], transA=1, transB=1)
    path = save_graph(
        tmp_path / "gemm.onnx",
        [node],
        [value("a", [7, 2]), value("b", [3, 7])],
        [value("y", [2, 3])],
    )
    assert onnx_cost(path, [(7, 2), (3, 7)]).macs == 2 * 3 * 7


def test_operators_that_are_not_counted_are_named(tmp_path):
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation="ij,jk->ik")
    path = save_graph(
        tmp_path / "einsum.onnx",
        [node],
        [value("a", [2, 3]), value("b", [3, 4])],
        [value("y", [2, 4])],
    )
    found = onnx_cost(path, [(2, 3), (3, 4)])
    assert (found.macs, found.uncounted) == (0, ("Einsum",))


def test_shapes_that_nobody_knows_are_not_counted(tmp_path):
    nodes = [
        helper.make_node("NonZero", ["a"], ["at"]),
        helper.make_node("Cast", ["at"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    path = save_graph(tmp_path / "free.onnx", nodes, [value("a", [2, 2])], [value("y", [2, "n"])])
    assert onnx_cost(path, [(2, 2)]).uncounted == ("MatMul",)


def test_inputs_are_made_as_the_file_asks(tmp_path):
    node = helper.make_node("Gather", ["table", "at"], ["y"])
    path = save_graph(
        tmp_path / "gather.onnx",
        [node],
        [value("table", ["n", 3]), value("at", [2], TensorProto.INT64)],
        [value("y", [2, 3])],
    )
    table, at = onnx_inputs(path)
    assert (table.shape, table.dtype) == ((1, 3), torch.float32)
    assert torch.equal(at, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(table, onnx_inputs(path)[0])


def test_free_sizes_must_be_given(tmp_path):
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save_graph(
        tmp_path / "relu.onnx", [node], [value("x", ["n", "m"])], [value("y", ["n", "m"])]
    )
    with pytest.raises(InputError, match="has sizes that are free") as caught:
        onnx_inputs(path)
    assert "['n', 'm']" in caught.value.seen
    assert onnx_cost(path, [(2, 3)]).macs == 0


@pytest.mark.parametrize("shapes", [[(1, 4)], [(1, 3, 1)], [], [(1, 3), (1, 3)]])
def test_inputs_must_fit(tmp_path, shapes):
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save_graph(
        tmp_path / "relu.onnx", [node], [value("x", ["n", 3])], [value("y", ["n", 3])]
    )
    with pytest.raises(InputError, match="do not fit the ONNX file"):
        onnx_cost(path, shapes)


@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_files_must_be_onnx(tmp_path, content):
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match="not an ONNX model|holds no ONNX graph"):
        onnx_inputs(path)
