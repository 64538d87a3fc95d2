from __future__ import annotations

import pytest
import torch
from torch import nn

from fxprune import latency
from fxprune.errors import ConfigError, InputError, LoadError
from fxprune.export import export_onnx
from fxprune.latency import Latency, compare_latency, onnx_latency

IMAGE = torch.zeros(2, 4, 16, 16)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same small net, narrow and wide: about 1 and 250 million MACs for two images."""
    folder = tmp_path_factory.mktemp("latency")
    paths = {}
    for name, width in (("narrow", 8), ("wide", 160)):
        net = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        paths[name] = export_onnx(net, folder / f"{name}.onnx", IMAGE).path
    return paths


class FakeModel:
    """Stands in for onnxruntime: a run takes the time its path says, on a clock of its own."""

    now = 0
    order: list[str] = []  # noqa: RUF012 - shared on purpose, the fixture clears it

    def __init__(self, path, *, threads):
        self.path = path

    def feed(self, inputs):
        return {}

    def run(self, feed):
        FakeModel.order.append(self.path)
        FakeModel.now += int(self.path) * 1_000_000


@pytest.fixture
def fake(monkeypatch):
    FakeModel.now, FakeModel.order = 0, []
    monkeypatch.setattr(latency, "OnnxModel", FakeModel)
    monkeypatch.setattr(latency.time, "perf_counter_ns", lambda: FakeModel.now)
    return FakeModel


def test_one_file(files):
    found = onnx_latency(files["narrow"], IMAGE, repeats=7, warmup=1)
    assert isinstance(found, Latency)
    assert (found.threads, found.batch, found.repeats) == (1, 2, 7)
    assert 0 < found.p10_ms <= found.median_ms <= found.p90_ms


def test_a_wide_net_takes_longer_than_a_narrow_one(files):
    found = compare_latency(files, IMAGE, threads=2, repeats=5, warmup=1)
    assert list(found) == ["narrow", "wide"]
    assert found["wide"].p10_ms > 2 * found["narrow"].p10_ms
    assert {one.threads for one in found.values()} == {2}


def test_times_are_milliseconds_of_one_run(fake):
    assert onnx_latency("5", IMAGE, repeats=3, warmup=2) == Latency(5.0, 5.0, 5.0, 1, 2, 3)
    assert fake.order == ["5"] * 5


def test_files_take_turns(fake):
    found = compare_latency({"a": "1", "b": "2", "c": "3"}, IMAGE, repeats=12, warmup=1)
    assert {name: one.median_ms for name, one in found.items()} == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert {one.repeats for one in found.values()} == {12}
    rounds = ["1" * 6 + "2" * 6 + "3" * 6, "2" * 6 + "3" * 6 + "1" * 6, "333111222"]
    assert "".join(fake.order) == "".join(rounds)


def test_scalars_count_as_one_example(fake):
    assert onnx_latency("1", torch.tensor(1.0)).batch == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "'repeats' argument must be an integer >= 1"),
        ({"warmup": -1}, "'warmup' argument must be an integer >= 0"),
        ({"threads": 1.5}, "'threads' argument must be an integer >= 1"),
    ],
)
def test_bad_numbers_are_refused(files, options, message):
    with pytest.raises(ConfigError, match=message):
        onnx_latency(files["narrow"], IMAGE, **options)


@pytest.mark.parametrize("paths", [{}, ["a.onnx"], None])
def test_paths_must_be_a_mapping(paths):
    with pytest.raises(ConfigError, match="'paths' argument must map at least one name"):
        compare_latency(paths, IMAGE)


def test_files_and_inputs_must_fit(files, tmp_path):
    with pytest.raises(LoadError, match="cannot load"):
        onnx_latency(tmp_path / "missing.onnx", IMAGE)
    with pytest.raises(InputError, match="cannot run the model on these inputs"):
        onnx_latency(files["narrow"], torch.zeros(2, 3, 16, 16))
    with pytest.raises(InputError, match="must be a tensor"):
        onnx_latency(files["narrow"], None)
