from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision

from fxprune._rows import append_row
from fxprune.data import ImageData
from fxprune.errors import ConfigError

ROOT = Path(__file__).parents[1]
EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def bench() -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools" / "bench"))
        yield importlib.import_module("accuracy")


@pytest.fixture(scope="module")
def running(bench):
    """What the benches share."""
    return importlib.import_module("running")


@pytest.fixture(scope="module")
def networks(bench):
    return bench.networks_module()


@pytest.fixture
def row(bench):
    return bench.Row(
        "glyphs",
        "resnet20",
        0.5,
        "ato",
        0,
        12,
        0.875,
        0.4999,
        0.61,
        60.5,
        "2.15.0",
        '{"a": "b, c"}',
    )


def _parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


# -- networks
@pytest.mark.parametrize(
    ("name", "options", "parameters", "macs"),
    [
        # He et al., table 6: 0.27 M and 0.85 M; MACs by hand: 16*27*32^2, then stages, then 640.
        ("resnet20", {"shortcut": "A"}, 269_722, 40_551_040),
        ("resnet20", {}, 272_474, 40_813_184),
        ("resnet56", {"shortcut": "A"}, 853_018, 125_485_696),
        ("resnet56", {}, 855_770, 125_747_840),
        ("resnet18", {}, 11_173_962, 555_422_720),
        ("resnet34", {}, 21_282_122, 1_159_402_496),
        ("mobilenet_v2", {}, 2_236_682, 24_461_312),
    ],
)
def test_networks_have_their_known_sizes(networks, name, options, parameters, macs):
    model = getattr(networks, name)(**options)
    assert _parameters(model) == parameters
    assert networks.count_macs(model, EXAMPLE) == macs


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "mobilenet_v2"])
def test_networks_are_torchvisions_but_for_the_stem(networks, name):
    ours = getattr(networks, name)(stem="imagenet").eval()
    theirs = torchvision.models.get_model(name, num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


def test_option_a_adds_zeros_and_no_parameters(networks):
    shortcut = networks.resnet20(shortcut="A").layer2[0].downsample
    x = torch.rand(1, 16, 8, 8)
    y = shortcut(x)
    assert not list(shortcut.parameters())
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y.shape == (1, 32, 4, 4)
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("resnet18", {"stem": "tiny"}, "'small' or 'imagenet'"),
        ("mobilenet_v2", {"stem": "tiny"}, "'small' or 'imagenet'"),
        ("resnet20", {"shortcut": "C"}, "'A' or 'B'"),
    ],
)
def test_unknown_options_are_refused(networks, name, options, match):
    with pytest.raises(ConfigError, match=match):
        getattr(networks, name)(**options)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("resnet20", 0.5),
        ("resnet20", 0.3),
        ("resnet20", 0.1),
        ("resnet18", 0.1),
        ("mobilenet_v2", 0.1),
    ],
)
def test_narrowed_meets_the_share_of_macs(networks, name, share):
    builder = partial(getattr(networks, name), 62)
    model = networks.narrowed(lambda width: builder(width=width), share, EXAMPLE)
    reached = networks.count_macs(model, EXAMPLE) / networks.count_macs(builder(), EXAMPLE)
    assert reached == pytest.approx(share, rel=0.01)
    assert model.eval()(EXAMPLE).shape == (1, 62)


def test_narrowed_keeps_the_random_state_and_refuses_bad_shares(networks):
    builder = lambda width: networks.resnet20(10, width)  # noqa: E731
    before = torch.get_rng_state()
    assert networks.width_for(builder, 0.5, EXAMPLE) == pytest.approx(0.71, abs=0.01)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ConfigError, match=r"must be in \(0, 1\]"):
        networks.narrowed(builder, 1.5, EXAMPLE)


# -- rows
def test_rows_are_read_as_they_were_written(bench, row, tmp_path):
    path = tmp_path / "rows.csv"
    assert bench.read(path) == {}
    other = dataclasses.replace(row, seed=1)
    append_row(path, row)
    append_row(path, other)
    assert bench.read(path) == {row.key: row, other.key: other}
    assert path.read_text().count("accuracy") == 1


def test_the_last_of_equal_rows_counts(bench, row, tmp_path):
    path = tmp_path / "rows.csv"
    for accuracy in (0.1, 0.2):
        append_row(path, dataclasses.replace(row, accuracy=accuracy))
    assert bench.read(path)[row.key].accuracy == 0.2


@pytest.mark.parametrize("cut", [3, 8, 20, 50])
def test_a_line_that_was_cut_off_costs_only_itself(bench, row, tmp_path, cut):
    path = tmp_path / "rows.csv"
    append_row(path, row)
    append_row(path, dataclasses.replace(row, seed=1))
    path.write_text(path.read_text()[:-cut])
    after = dataclasses.replace(row, seed=2)
    append_row(path, after)
    with pytest.warns(UserWarning, match="left out"):
        assert list(bench.read(path)) == [row.key, after.key]


# -- the runs
def test_every_run_once_and_the_dense_reference_per_network(bench):
    keys = [key for key, _ in bench._runs([0, 1, 2], [])]
    assert len(keys) == len(set(keys)) == 3 * (7 * 5 + 3)
    assert sum(key[3] == "dense" for key in keys) == 9


@pytest.mark.parametrize(
    ("only", "count"),
    [
        (["glyphs"], 32),
        (["digits"], 6),
        (["glyphs/resnet20/0.5,0.3/ato"], 2),
        (["//0.1/narrow,ato"], 6),
        (["/resnet20//dense/0"], 1),
        (["digits///narrow", "glyphs/mobilenet_v2/0.1/narrow"], 2),
        (["glyphs/resnet18"], 0),
    ],
)
def test_filters(bench, only, count):
    assert len(list(bench._runs([0], only))) == count


def test_a_filter_that_no_run_fits_is_refused(bench, capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "glyfs"])
    assert "no run fits --only glyfs" in capsys.readouterr().err


def test_finished_runs_are_skipped(bench, running, row, tmp_path, monkeypatch):
    asked = []

    def in_process(script, arguments, quiet):
        _, name, method, seed = arguments
        task = bench.find_task(name)
        target = 1.0 if method == "dense" else task.target
        asked.append((task.data, task.net, target, method))
        values = zip(("task", "net", "target", "method"), asked[-1], strict=True)
        found = dataclasses.replace(row, **dict(values), seed=int(seed), epochs=task.epochs)
        return [dataclasses.asdict(found)]

    monkeypatch.setattr(running, "_in_process", in_process)
    arguments = ["--rows", str(tmp_path / "rows.csv"), "--seeds", "0", "--only"]
    assert bench.main([*arguments, "digits///narrow,dense"]) == 0
    assert asked == [("digits", "resnet18", 1.0, "dense"), ("digits", "resnet18", 0.1, "narrow")]
    assert bench.main([*arguments, "digits///narrow,ato"]) == 0
    assert asked[2:] == [("digits", "resnet18", 0.1, "ato")]
    assert bench.main([*arguments, "digits///narrow", "--again"]) == 0
    assert len(asked) == 4


def test_rows_of_another_length_are_run_again_and_not_shown(bench, row, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    append_row(path, dataclasses.replace(row, epochs=1))
    assert bench._finished(bench.read(path)) == []
    append_row(path, dataclasses.replace(row, epochs=bench.TASKS[0].epochs))
    assert len(bench._finished(bench.read(path))) == 1


def test_a_run_that_fails_leaves_no_row(bench, running, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "_in_process", lambda *_: None)
    path = tmp_path / "rows.csv"
    assert bench.main(["--rows", str(path), "--seeds", "0", "--only", "digits"]) == 1
    assert not path.exists()
    assert "digits resnet18 1.0 dense 0: failed" in capsys.readouterr().out


# -- methods
@pytest.fixture(scope="module")
def setup(bench, networks):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(320, 3, 16, 16, generator=generator)
    labels = torch.arange(320) % 4
    data = ImageData(images[:256], labels[:256], images[256:], labels[256:], 4)
    task = bench.Task("tiny", "resnet20", 0.5, 4, 0.05)

    def build(width):
        return networks.ResidualNet((1, 1, 1), [round(width * c) for c in (16, 32, 64)], 4)

    return bench.Setup(task, data, build, torch.zeros(1, 3, 16, 16), 0)


@pytest.mark.parametrize(
    "method", ["dense", "narrow", "magnitude", "ato", "complexity", "torch-pruning"]
)
def test_methods_train_and_meet_the_target(bench, setup, method):
    if method == "torch-pruning":
        pytest.importorskip("torch_pruning")
    before = torch.get_rng_state()
    row = bench.measure(setup, method)
    assert torch.equal(torch.get_rng_state(), before)
    assert row.macs == pytest.approx(row.target, rel=0.02)
    assert row.target == (1 if method == "dense" else 0.5)
    assert 0 < row.params <= 1
    assert 0 <= row.accuracy <= 1
    assert json.loads(row.settings)["batch"] == 64


def test_runs_repeat_by_seed(bench, setup):
    task = dataclasses.replace(setup.task, epochs=1)
    first, again, other = (
        _narrow(bench, dataclasses.replace(setup, task=task, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def _narrow(bench, setup):
    with torch.random.fork_rng():
        torch.manual_seed(setup.seed)
        return bench.METHODS["narrow"](setup)[0].conv1.weight


class _OneChannelLess:
    """Stands for torch-pruning's pruner: every step takes one of 8 channels of a 1x1 convolution."""

    def __init__(self, model):
        self.model = model
        self.current_step = 0

    def step(self):
        self.current_step += 1
        self.model[0] = torch.nn.Conv2d(3, 8 - self.current_step, 1)


@pytest.mark.parametrize(("target", "channels"), [(0.7, 6), (0.65, 5), (0.5, 4), (1.0, 8)])
def test_stepwise_pruning_ends_at_the_nearest_step(bench, setup, target, channels):
    module = importlib.import_module("accuracy_.group_norm")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1))
    asked = dataclasses.replace(setup, task=dataclasses.replace(setup.task, target=target))
    assert module._prune(_OneChannelLess(model), model, asked)[0].out_channels == channels


def test_torch_pruning_that_is_missing_is_named(bench, setup, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match="not installed"):
        bench.measure(setup, "torch-pruning")


def test_unknown_tasks_and_methods_are_refused(bench, setup):
    with pytest.raises(ConfigError, match="no task named 'glyphs/resnet20'"):
        bench.run("glyphs/resnet20", "dense", 0)
    with pytest.raises(ConfigError, match="no method 'luck'"):
        bench.measure(setup, "luck")


# -- page and figure
def test_page_has_mean_spread_and_the_best_in_bold(bench, row):
    rows = [
        dataclasses.replace(row, accuracy=0.80),
        dataclasses.replace(row, accuracy=0.90, seed=1),
        dataclasses.replace(row, accuracy=0.84, method="narrow"),
        dataclasses.replace(row, accuracy=0.99, method="dense", target=1.0, macs=1.0),
    ]
    text = bench.page(rows, "python x.py", {"ato": "Train once."})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    table = [line for line in cells if len(line) > 2 and line[2].strip("*").endswith(" %")]
    assert [line[:3] for line in table] == [
        ["100.0 %", "dense", "99.0 %"],
        ["50.0 %", "narrow", "84.0 %"],
        ["50.0 %", "ato", "**85.0 ± 7.1 %**"],
    ]
    assert re.search(r"`python x.py`\. 4 runs", text)
    assert "* **ato**: Train once." in text


def test_figure_is_drawn(bench, row, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [dataclasses.replace(row, net=net) for net in ("resnet20", "mobilenet_v2")]
    bench.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="no rows to draw"):
        bench.draw([], tmp_path / "other.png")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
