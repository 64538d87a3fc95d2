"""What one training step is, and what a stage says of itself."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training.runs import SETTINGS, data, net

import fxprune
from fxprune.errors import ConfigError
from fxprune.training.batches import TensorSamples, split_rows
from fxprune.training.distributed import Ranks
from fxprune.training.log import Log
from fxprune.training.loss import heads, task_loss
from fxprune.training.optim import build_optimizer, build_schedule
from fxprune.training.stage import Clock, Feed, Stage

RANKS = Ranks(0, 1, torch.device("cpu"))


def stage(name: str = "dense", norm: bool = True, network: nn.Module | None = None, **changed):
    settings = dataclasses.replace(SETTINGS, **{"epochs": 2, **changed})
    samples = TensorSamples(data().train_images, data().train_labels)
    rows, held = split_rows(len(samples), settings.held_back, settings.seed)
    feed = Feed.of(samples, rows, held if name == "ato" else None, settings, 1)
    network = net(norm) if network is None else network
    if name == "ato":
        network = fxprune.auto_gate(network, samples.images[:1])
    return Stage(name, network, feed, settings, RANKS)


def run(one: Stage, folder: Path, save=lambda: None) -> list:
    with torch.random.fork_rng(devices=[]), Log(folder, (), shown=False) as log:
        one.run(log, Clock(), save)
    return log.rows


def weights(one: Stage) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in one.network.parameters()])


def test_a_dense_stage_is_the_plain_loop(tmp_path) -> None:
    one = stage(norm=False, epochs=1)
    samples, rows = data(), split_rows(200, 0.05, 0)[0]
    run(one, tmp_path)
    model = net(norm=False)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.05, total_steps=11, cycle_momentum=False
    )
    shuffled = torch.cat(one._feed.order.epoch(0))
    assert set(shuffled.tolist()) < set(rows.tolist())
    for batch in shuffled.split(16):
        optimizer.zero_grad()
        F.cross_entropy(model(samples.train_images[batch]), samples.train_labels[batch]).backward()
        optimizer.step()
        schedule.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights(one), expected)


@pytest.mark.parametrize("name", ["dense", "ato"])
def test_a_batch_in_parts_gives_the_same_step(tmp_path, name) -> None:
    whole, parts = stage(name, norm=False), stage(name, norm=False, accumulate=3)
    first, second = run(whole, tmp_path), run(parts, tmp_path)
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)
    assert not torch.equal(weights(parts), weights(whole))
    assert [row.accuracy for row in first] == pytest.approx([row.accuracy for row in second])


@pytest.mark.parametrize("name", ["dense", "ato"])
@pytest.mark.parametrize(
    ("optimizer", "schedule"), [("sgd", "one-cycle"), ("adam", "cosine"), ("adamw", "one-cycle")]
)
def test_the_loss_falls_with_every_optimizer(tmp_path, name, optimizer, schedule) -> None:
    lr = 0.05 if optimizer == "sgd" else 0.01
    one = stage(name, epochs=4, optimizer=optimizer, schedule=schedule, lr=lr, weight_decay=1e-3)
    rows = run(one, tmp_path)
    assert [row.step for row in rows] == [11, 22, 33, 44]
    assert rows[-1].loss < 0.5 * rows[0].loss
    assert rows[-1].accuracy > 0.9
    assert rows[-1].lr < 0.05 * lr


def test_the_gradient_is_clipped(tmp_path) -> None:
    one = stage(epochs=1, clip=1e-6, momentum=0, weight_decay=0, lr=1.0)
    before = weights(one)
    run(one, tmp_path)
    assert 0 < (weights(one) - before).norm() <= 11 * 1.01e-6


def test_bfloat16_changes_the_numbers_a_little(tmp_path) -> None:
    seen = []
    network = net()
    network[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    one, plain = stage(network=network, amp=True), stage()
    rows, expected = run(one, tmp_path), run(plain, tmp_path)
    assert set(seen) == {torch.bfloat16}
    assert rows[-1].loss == pytest.approx(expected[-1].loss, rel=0.1)
    assert rows[-1].loss != expected[-1].loss
    assert weights(one).dtype is torch.float32


def test_the_controller_sees_held_back_samples_only(tmp_path) -> None:
    one = stage("ato", epochs=4)
    fed = []
    fetch = TensorSamples.batches

    class Spy(TensorSamples):
        def batches(self, groups, epoch=0):
            fed.extend((rows.tolist(), len(groups)) for rows in groups)
            return fetch(self, groups, epoch)

    object.__setattr__(one._feed, "samples", Spy(data().train_images, data().train_labels))
    run(one, tmp_path)
    held = set(split_rows(200, 0.05, 0)[1].tolist())
    controllers = [rows for rows, groups in fed if groups == 1]
    assert {row for rows in controllers for row in rows} == held
    assert not {row for rows, groups in fed if groups > 1 for row in rows} & held
    assert one._held_batches == len(controllers) > 10


def test_checkpoints_and_rows_come_when_asked(tmp_path) -> None:
    one, saved = stage(epochs=1, checkpoint_every=4, log_every=3), []
    rows = run(one, tmp_path, lambda: saved.append(one.done))
    assert saved == [4, 8, 11]
    assert [row.step for row in rows] == [3, 6, 9, 11]
    assert all(row.epoch == 1 and row.phase == "dense" and row.expected == 1 for row in rows)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path) -> None:
    with pytest.raises(ConfigError, match="loss is not finite any more") as caught:
        run(stage(epochs=1, lr=1e30), tmp_path)
    assert "lower lr (it is 1e+30)" in caught.value.hint
    one, saved = stage(epochs=1, lr=1e30, checkpoint_every=5), []
    with pytest.raises(ConfigError, match="not finite"):
        run(one, tmp_path, lambda: saved.append(one.state_dict()))
    assert saved == []


def test_the_cosine_warms_up_and_ends_at_nothing() -> None:
    model = nn.Linear(1, 1)
    settings = dataclasses.replace(SETTINGS, schedule="cosine", lr=1.0)
    optimizer = build_optimizer(model, settings)
    schedule = build_schedule(optimizer, settings, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[52] == pytest.approx(0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert 0 < rates[-1] < 1e-3


def test_the_warm_up_is_a_share_of_the_run() -> None:
    settings = dataclasses.replace(SETTINGS, schedule="cosine", lr=1.0, warm_up=0.2)
    optimizer = build_optimizer(nn.Linear(1, 1), settings)
    schedule = build_schedule(optimizer, settings, 20)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[12] == pytest.approx(0.5)


def test_momentum_is_nesterovs_unless_it_is_not_asked_for() -> None:
    model = nn.Linear(1, 1)
    plain = dataclasses.replace(SETTINGS, nesterov=False)
    assert build_optimizer(model, SETTINGS).defaults["nesterov"]
    assert not build_optimizer(model, plain).defaults["nesterov"]
    assert build_optimizer(model, plain).defaults["momentum"] == 0.9


def test_labels_are_smoothed_for_the_weights_only(tmp_path) -> None:
    one = stage("ato", norm=False, label_smoothing=0.4)
    rows = torch.arange(16)
    images, labels = data().train_images[rows], data().train_labels[rows]
    scores = one.network(images)
    expected = F.cross_entropy(scores, labels, label_smoothing=0.4)
    one._weight_step(one.network, images, labels)
    assert one._sums[0] == pytest.approx(16 * expected.item())
    held = one._feed.held_back.batch(0)
    scores = one.network(data().train_images[held])
    assert torch.equal(one._held_back_loss(), F.cross_entropy(scores, data().train_labels[held]))


def test_the_controller_learns_at_the_rate_it_is_given() -> None:
    assert stage("ato", controller_lr=0.03).controller.state_dict()["settings"]["rate"] == 0.03
    assert stage("ato").controller.state_dict()["settings"]["rate"] != 0.03


def test_the_task_loss_counts_auxiliary_heads() -> None:
    labels = torch.tensor([0, 1, 1])
    first, second = torch.randn(3, 2), torch.randn(3, 2)
    alone, right = task_loss(first, labels)
    assert right == (first.argmax(1) == labels).sum()
    assert torch.equal(alone, F.cross_entropy(first, labels))
    both = alone + 0.3 * F.cross_entropy(second, labels)
    for outputs in ((first, second), {"out": first, "aux": second}, [first, None, second]):
        loss, counted = task_loss(outputs, labels)
        assert torch.allclose(loss, both)
        assert counted == right


@pytest.mark.parametrize("outputs", [torch.zeros(2), (), "scores", torch.zeros(2, 3, 4, 4), {}])
def test_the_task_is_classification(outputs) -> None:
    with pytest.raises(ConfigError, match="The runtime trains classifiers"):
        heads(outputs)
