"""The command train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fxprune.cli import commands, models, train
from fxprune.serialize import load

SHAPE = ["--input", "1,3,8,8"]
SMALL = "fxprune_test_nets:small"


# -- train -----------------------------------------------------------------------------------------
CLASSIFIER = "fxprune_test_nets:classifier"
DIGITS = ["--data", "digits", "--size", "8"]


def test_train_ends_with_one_line_of_json(run, here):
    options = ["--macs", "0.5", "--epochs", "1", "--out", "made", "--json"]
    status, out, _ = run("train", CLASSIFIER, *DIGITS, *options)
    assert status == 0
    data = json.loads(out.splitlines()[-1])
    names = {"dense", "compact", "target", "settled", "nu", "max_abs_error", "seconds"}
    assert set(data) == names | {"epoch_seconds", "onnx"}
    for network in ("dense", "compact"):
        assert set(data[network]) == {"macs", "params", "accuracy"}
        assert 0 <= data[network]["accuracy"] <= 1
    assert data["target"] == {"macs": 0.5}
    assert data["compact"]["macs"] / data["dense"]["macs"] == pytest.approx(0.5, rel=0.01)
    assert data["onnx"] == str(Path("made") / "compact.onnx")
    assert (here / data["onnx"]).stat().st_size > 0
    compact = load(here / "made" / "compact.pt", models.build_model(CLASSIFIER))
    assert sum(p.numel() for p in compact.parameters()) == data["compact"]["params"]

    status, out, err = run("train", CLASSIFIER, *DIGITS, *options)
    assert (status, out) == (2, "")
    assert "already holds a training run" in err
    status, out, _ = run("train", CLASSIFIER, *DIGITS, *options, "--resume")
    assert status == 0
    assert json.loads(out)["compact"] == data["compact"]


def test_train_takes_its_options_and_prints_tables(run, here, monkeypatch):
    seen = {}
    plain = train.run_training

    def spy(model, data, settings, out, resume):
        seen.update(settings=settings, data=data)
        return plain(model, data, settings, out, resume=resume)

    monkeypatch.setattr(train, "run_training", spy)
    status, out, _ = run(
        *("train", CLASSIFIER, *DIGITS, "--params", "0.6", "--epochs", "1", "--out", "made"),
        *("--no-dense", "--round-to", "2", "--ignore", r"re:^0\.", "--seed", "3", "--lr", "0.01"),
        *("--optimizer", "adamw", "--schedule", "cosine", "--batch-size", "32", "--clip", "1"),
        *("--weight-decay", "0.1", "--held-back", "0.1", "--accumulate", "2", "--amp"),
        *("--device", "cpu", "--every", "4", "--workers", "0", "--momentum", "0.8"),
    )
    assert status == 0
    assert "not trained" in out
    assert "Budget: params: asked 60.00%" in out
    settings = seen["settings"]
    assert (settings.target, settings.epochs, settings.dense) == (("params", 0.6), 1, False)
    assert (settings.round_to, settings.seed, settings.rate) == (2, 3, 0.01)
    assert (settings.optimizer, settings.schedule, settings.clip) == ("adamw", "cosine", 1)
    assert (settings.batch_size, settings.accumulate, settings.amp) == (32, 2, True)
    assert (settings.weight_decay, settings.held_back, settings.every) == (0.1, 0.1, 4)
    assert (settings.device, settings.workers, settings.momentum) == ("cpu", 0, 0.8)
    assert seen["data"].train_images.shape[2:] == (8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "nowhere"], "takes digits, glyphs, or a folder"),
        (["--data", "."], "two classes"),
        ([*DIGITS, "--macs", "2"], "must be a share in"),
        ([*DIGITS, "--macs", "0.0001"], "No keep-mask reaches macs=0.0001"),
        ([*DIGITS, "--epochs", "0"], "'epochs' argument must be an integer >= 1"),
        ([*DIGITS, "--device", "abacus"], "no device 'abacus'"),
        ([*DIGITS, "--ignore", "nothing"], "matches no module or parameter"),
    ],
)
def test_train_refuses_before_it_trains(run, here, options, message):
    given = ["--macs", "0.5", "--epochs", "1", "--out", "made"]
    status, out, err = run("train", CLASSIFIER, *given, *options)
    assert (status, out) == (2, "")
    assert message in err
    assert "step" not in err
    assert not (here / "made").exists()


def test_train_wants_as_many_scores_as_classes(run):
    given = ["--data", "glyphs", "--macs", "0.5", "--epochs", "1", "--out", "made"]
    status, _, err = run("train", CLASSIFIER, *given)
    assert status == 2
    assert "returns 10 scores, but the data has 62 classes" in err


def test_of_several_processes_one_prints(run, monkeypatch):
    monkeypatch.setattr(commands, "inspect", lambda args: None)
    assert run("inspect", "net") == (0, "", "")
