from __future__ import annotations

import dataclasses
import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxprune import onnx_write
from fxprune.errors import ConfigError, ExportError, InputError, LoadError
from fxprune.export import OnnxExport, export_onnx
from fxprune.runtime import OnnxModel, first_lines, plain_name, run_onnx
from fxprune.tolerances import RTOL

OLD = b"an older file"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Flatten(1),
        nn.Linear(8 * 36, 5),
    )


@pytest.fixture
def target(tmp_path):
    """A path at which an older file stands."""
    path = tmp_path / "net.onnx"
    path.write_bytes(OLD)
    return path


def image(n: int) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(n))


def assert_untouched(target: Path) -> None:
    assert target.read_bytes() == OLD
    assert [file.name for file in target.parent.iterdir()] == [target.name]


def evaluated(model: nn.Module, *args: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(*args).numpy()


def test_a_small_net(net, target, capfd):
    net.train()
    net[1].eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random_state = torch.get_rng_state()

    made = export_onnx(net, target, image(1))

    assert capfd.readouterr() == ("", "")
    assert isinstance(made, OnnxExport)
    assert made.path == target
    assert made.batches == (1, 5)
    assert made.bytes == target.stat().st_size
    assert 0 < made.max_rel_error <= RTOL[torch.float32]
    assert 0 < made.max_abs_error < 1e-4
    assert [file.name for file in target.parent.iterdir()] == ["net.onnx"]
    assert made.opset == onnx.load(target).opset_import[0].version

    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in net.parameters())

    expected = evaluated(net, image(7))
    (found,) = run_onnx(target, image(7), threads=2)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(run_onnx(str(target), {"input": image(7)})[0], found)


def test_the_file_has_ordinary_permissions_plain_names_and_no_source_paths(net, tmp_path):
    umask = os.umask(0o022)
    try:
        export_onnx(net, tmp_path / "net.onnx", image(2))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "net.onnx").stat().st_mode) == 0o644
    written = OnnxModel(tmp_path / "net.onnx")
    assert written.input_names == ("input",)
    assert written.input_shapes == (("batch", 3, 6, 6),)
    assert written.output_names == ("output",)
    weights = {weight.name for weight in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert {"0.weight", "5.weight", "5.bias"} <= weights
    assert Path(__file__).name.encode() not in (tmp_path / "net.onnx").read_bytes()


def test_resnet18(tmp_path):
    model = torchvision.models.resnet18(weights=None)
    made = export_onnx(model, tmp_path / "resnet18.onnx", torch.randn(1, 3, 64, 64))
    assert made.batches == (1, 5)
    assert made.max_rel_error <= RTOL[torch.float32]
    assert model.training
    assert made.bytes == pytest.approx(46.8e6, rel=0.01)
    for n in (1, 5):
        x = torch.randn(n, 3, 64, 64)
        expected = evaluated(model, x)
        (found,) = run_onnx(tmp_path / "resnet18.onnx", x)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_example_batch_other_than_one_is_compared_with_one(net, tmp_path):
    assert export_onnx(net, tmp_path / "net.onnx", image(3)).batches == (3, 1)


@dataclasses.dataclass
class Out:
    add: Tensor
    relu: Tensor
    extra: object = None


class Tree(nn.Module):
    """Arguments and outputs of every kind; its own names are those torch gives to values inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, weight, d, flag, *rest, scale=None):
        x = weight + d["add"]
        if flag:
            x = torch.relu(self.linear(x)) * self.weight
        return Out(x, {"add": x + rest[0], "size": x.shape[0]}, (weight, scale))


def test_trees_of_arguments_and_outputs(tmp_path):
    path = tmp_path / "tree.onnx"
    inputs = (torch.randn(2, 4), {"add": torch.randn(2, 4)}, True, torch.randn(4))
    export_onnx(Tree(), path, inputs)
    written = OnnxModel(path)
    assert written.input_names == ("weight", "d_add", "input_3")
    assert written.input_shapes == (("batch", 4), ("batch", 4), (4,))
    assert written.output_names == ("add", "relu_add", "extra_0")
    total, shifted, same = run_onnx(path, inputs)
    np.testing.assert_allclose(shifted, total + inputs[3].numpy(), rtol=1e-6)
    np.testing.assert_array_equal(same, inputs[0].numpy())


def test_keyword_arguments_keep_their_names_and_a_last_dict_stays_an_argument(tmp_path):
    class Model(nn.Module):
        def forward(self, left, right):
            return {"left": left * 2 + right["a"]}

    x, y = torch.randn(2, 3), torch.randn(2, 3)
    path = tmp_path / "m.onnx"
    for inputs in ((x, {"a": y}), {"right": {"a": y}, "left": x}):
        export_onnx(Model(), path, inputs)
        assert set(OnnxModel(path).input_names) == {"left", "right_a"}
        assert OnnxModel(path).output_names == ("left_2",)
        np.testing.assert_allclose(run_onnx(path, inputs)[0], (x * 2 + y).numpy(), rtol=1e-6)


def test_attention_is_written_open_in_its_batch(tmp_path):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    made = export_onnx(layer, tmp_path / "layer.onnx", torch.randn(1, 5, 8))
    assert made.batches == (1, 5)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_fixed_batch(net, tmp_path):
    made = export_onnx(net, tmp_path / "net.onnx", image(2), dynamic_batch=False)
    assert made.batches == (2,)
    assert OnnxModel(tmp_path / "net.onnx").input_shapes == ((2, 3, 6, 6),)
    with pytest.raises(InputError, match=r"cannot run the model[\s\S]*\(3, 3, 6, 6\)"):
        run_onnx(tmp_path / "net.onnx", image(3))


def test_a_model_that_takes_positive_values_only(tmp_path):
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    assert export_onnx(Log(), tmp_path / "log.onnx", torch.rand(1, 4) + 0.1).batches == (1, 5)


def test_scalars_have_no_batch(tmp_path):
    model, x = nn.ReLU(), torch.tensor(2.0)
    with pytest.raises(InputError, match=r"No example input has a batch[\s\S]*dynamic_batch=False"):
        export_onnx(model, tmp_path / "m.onnx", x)
    assert export_onnx(model, tmp_path / "m.onnx", x, dynamic_batch=False).batches == ()


def test_weights_too_large_for_one_file_go_beside_it(net, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_write, "SINGLE_FILE_BYTES", 1000)
    made = export_onnx(net, tmp_path / "net.onnx", image(1))
    files = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert set(files) == {"net.onnx", "net.onnx.data"}
    assert made.bytes == sum(files.values())
    np.testing.assert_allclose(
        run_onnx(made.path, image(4))[0], evaluated(net, image(4)), atol=1e-5
    )


def test_the_opset_asked_for_is_written(net, tmp_path):
    assert export_onnx(net, tmp_path / "net.onnx", image(1), opset=18).opset == 18


def test_an_opset_out_of_reach_is_an_error(net, target):
    with pytest.raises(ExportError, match=r"version of the operator set[\s\S]*asked for 9, got"):
        export_onnx(net, target, image(1), opset=9)
    assert_untouched(target)


def test_a_failing_check_leaves_the_older_file(net, target, monkeypatch):
    def fail(*args, **kwargs):
        raise onnx.checker.ValidationError("the checker says no")

    monkeypatch.setattr(onnx.checker, "check_model", fail)
    net.train()
    with pytest.raises(ExportError, match=r"valid ONNX file[\s\S]*the checker says no") as caught:
        export_onnx(net, target, image(1))
    assert str(target) in caught.value.where
    assert net.training
    assert_untouched(target)


def test_a_failing_check_leaves_no_new_file(net, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx.checker, "check_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ExportError, match="ZeroDivisionError"):
        export_onnx(net, tmp_path / "net.onnx", image(1))
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_differ_are_an_error(net, target, monkeypatch):
    run = OnnxModel.run
    monkeypatch.setattr(OnnxModel, "run", lambda *args: [x * 1.001 for x in run(*args)])
    with pytest.raises(
        ExportError, match=r"does not compute what torch computes at batch size 1[\s\S]*relative er"
    ):
        export_onnx(net, target, image(1))
    assert_untouched(target)


def test_a_difference_at_the_second_batch_size_only_is_an_error(net, target, monkeypatch):
    run = OnnxModel.run

    def wrong_at_five(self, feed):
        return [x * (1.001 if len(x) == 5 else 1) for x in run(self, feed)]

    monkeypatch.setattr(OnnxModel, "run", wrong_at_five)
    with pytest.raises(ExportError, match="at batch size 5"):
        export_onnx(net, target, image(1))
    assert_untouched(target)


def test_random_numbers_in_eval_mode_are_an_error(target):
    class Noise(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, training=True)

    with pytest.raises(ExportError, match="draw no random number in eval mode"):
        export_onnx(Noise(), target, image(2))
    assert_untouched(target)


def test_a_batch_size_fixed_by_the_model_is_an_error(target):
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.randn(2, 4))

        def forward(self, x):
            return x + self.shift

    with pytest.raises(ExportError, match=r"fixes its batch size[\s\S]*dynamic_batch=False"):
        export_onnx(Fixed(), target, torch.randn(2, 4))
    assert_untouched(target)
    assert export_onnx(Fixed(), target, torch.randn(2, 4), dynamic_batch=False).batches == (2,)


def test_an_operator_without_onnx_counterpart_is_an_error(target, capfd):
    class Values(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    with pytest.raises(ExportError, match=r"valid ONNX file[\s\S]*svd"):
        export_onnx(Values(), target, torch.randn(2, 3, 3))
    assert_untouched(target)
    assert capfd.readouterr() == ("", "")


def test_control_flow_on_values_is_an_error(target, capfd):
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else x + 1

    with pytest.raises(ExportError, match=r"decides by values[\s\S]*data-dependent[\s\S]*traced"):
        export_onnx(Branch(), target, torch.randn(2, 3))
    assert_untouched(target)
    assert capfd.readouterr() == ("", "")


def test_float64_is_explained(net, target):
    with pytest.raises(ExportError, match=r"cannot load what torch wrote[\s\S]*model.float\(\)"):
        export_onnx(net.double(), target, image(1))
    assert_untouched(target)


def test_a_directory_or_a_missing_one_is_an_error(net, tmp_path):
    with pytest.raises(ExportError, match="path is a directory"):
        export_onnx(net, tmp_path, image(1))
    with pytest.raises(ExportError, match=r"directory of the path does not exist[\s\S]*missing"):
        export_onnx(net, tmp_path / "missing" / "net.onnx", image(1))
    (tmp_path / "file").write_bytes(OLD)
    with pytest.raises(ExportError, match="directory of the path does not exist"):
        export_onnx(net, tmp_path / "file" / "net.onnx", image(1))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_directory_that_is_not_writable_is_an_error(net, target, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(
        ExportError, match=r"cannot be written[\s\S]*Permission denied[\s\S]*next: "
    ):
        export_onnx(net, target, image(1))
    assert_untouched(target)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_an_error(net, target):
    target.parent.chmod(0o500)
    try:
        with pytest.raises(ExportError, match="cannot be written"):
            export_onnx(net, target, image(1))
    finally:
        target.parent.chmod(0o700)
    assert_untouched(target)


def test_a_failing_last_step_is_an_error(net, target, monkeypatch):
    def refuse(self, other):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(ExportError, match=r"cannot be written[\s\S]*No space left"):
        export_onnx(net, target, image(1))
    assert_untouched(target)


def test_bad_arguments(net, tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(ConfigError, match="'model' argument of export_onnx"):
        export_onnx(torch.relu, path, image(1))
    with pytest.raises(ConfigError, match=r"'path' argument of export_onnx[\s\S]*int"):
        export_onnx(net, 3, image(1))
    with pytest.raises(ConfigError, match="'opset' argument must be an integer >= 1"):
        export_onnx(net, path, image(1), opset="18")
    with pytest.raises(InputError, match="must be a tensor"):
        export_onnx(net, path, None)
    with pytest.raises(
        InputError, match=r"does not run on the example inputs[\s\S]*\(1, 4, 6, 6\)"
    ):
        export_onnx(net.train(), path, torch.randn(1, 4, 6, 6))
    assert net.training
    assert list(tmp_path.iterdir()) == []


def test_run_onnx_refuses_what_does_not_fit(net, tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(LoadError, match=r"onnxruntime cannot load[\s\S]*net.onnx"):
        run_onnx(path, image(1))
    path.write_bytes(OLD)
    with pytest.raises(LoadError, match="onnxruntime cannot load"):
        run_onnx(path, image(1))
    export_onnx(net, path, image(1))
    with pytest.raises(InputError, match=r"takes \['input'\], given by position: 2"):
        run_onnx(path, (image(1), image(1)))
    with pytest.raises(InputError, match=r"takes \['input'\], given are \['x'\]"):
        run_onnx(path, {"x": image(1)})
    with pytest.raises(InputError, match=r"\(1, 3, 5, 5\) float32[\s\S]*takes the shapes"):
        run_onnx(path, torch.zeros(1, 3, 5, 5))
    with pytest.raises(InputError, match="numpy does not know the dtype"):
        run_onnx(path, image(1).bfloat16())
    with pytest.raises(ConfigError, match="'threads' argument"):
        run_onnx(path, image(1), threads=0)


def test_names_and_messages_are_shortened():
    assert plain_name("['boxes'][0]", "output") == "boxes_0"
    assert plain_name("[0].mean", "output") == "output_0_mean"
    assert plain_name("", "output") == "output"
    assert first_lines(ValueError("a\n  b")) == "ValueError: a b"
    assert len(first_lines(ValueError("a" * 1000))) < 420
