from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from fxprune.errors import ConfigError
from fxprune.training.batches import DatasetSamples, Order, TensorSamples, split_rows
from fxprune.training.settings import TrainSettings
from fxprune.training.stage import Feed


class Noisy(Dataset):
    """Ten images with random transforms of three kinds."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row):
        noise = [torch.rand(()), np.random.rand(), random.random()]
        return torch.tensor(noise).view(3, 1, 1), row


class Told(Noisy):
    """Images that tell the epoch they were told."""

    def __getitem__(self, row):
        return torch.full((3, 1, 1), self.epoch), row

    def set_epoch(self, epoch):
        self.epoch = epoch


@pytest.mark.parametrize(("n", "share", "held"), [(100, 0.05, 5), (10, 0.01, 1), (7, 0.5, 4)])
def test_the_split_is_complete_and_fixed_by_the_seed(n, share, held) -> None:
    rows, kept = split_rows(n, share, 3)
    assert len(kept) == held
    assert sorted([*rows.tolist(), *kept.tolist()]) == list(range(n))
    again, other = split_rows(n, share, 3)[1], split_rows(n, share, 4)[0]
    assert torch.equal(again, kept)
    assert not torch.equal(other, rows)


def test_an_epoch_is_a_permutation_of_its_own() -> None:
    order = Order(torch.arange(50, 100), 8, seed=0)
    assert order.per_epoch == 6
    first, second = torch.cat(order.epoch(0)), torch.cat(order.epoch(1))
    assert len(set(first.tolist())) == 48
    assert set(first.tolist()) < set(range(50, 100))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(order.epoch(0)), first)
    for other in (Order(order.rows, 8, seed=1), Order(order.rows, 8, seed=0, stream=1)):
        assert not torch.equal(torch.cat(other.epoch(0)), first)


def test_what_is_left_out_differs_from_epoch_to_epoch() -> None:
    order = Order(torch.arange(50), 8, seed=0)
    assert len({row for n in range(12) for group in order.epoch(n) for row in group.tolist()}) == 50


def test_batches_can_be_counted_over_epochs() -> None:
    order = Order(torch.arange(10), 4, seed=0)
    counted = [order.batch(n) for n in range(6)]
    listed = [*order.epoch(0), *order.epoch(1), *order.epoch(2)]
    assert all(torch.equal(a, b) for a, b in zip(counted, listed, strict=True))


def test_tensors_are_sliced() -> None:
    samples = TensorSamples(torch.arange(10.0).view(10, 1, 1, 1), torch.arange(10))
    ((images, labels),) = samples.batches([torch.tensor([7, 2])])
    assert images.flatten().tolist() == labels.tolist() == [7, 2]
    assert len(samples) == 10


def test_random_transforms_depend_on_seed_epoch_and_sample_only() -> None:
    groups = [torch.tensor([3, 1, 4]), torch.tensor([5, 9]), torch.tensor([2])]
    torch.manual_seed(0)
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def load(seed=0, workers=0, epoch=0, groups=groups):
        found = list(DatasetSamples(Noisy(), seed, workers).batches(groups, epoch))
        return torch.cat([images for images, _ in found]), torch.cat([y for _, y in found])

    images, labels = load()
    assert labels.tolist() == [3, 1, 4, 5, 9, 2]
    assert labels.dtype is torch.int64
    assert torch.equal(load()[0], images)
    assert torch.equal(load(workers=2)[0], images)
    assert torch.equal(load(groups=groups[1:])[0], images[3:])
    assert len(images.unique()) == 18
    assert not (load(seed=1)[0] == images).any()
    assert not (load(epoch=5)[0] == images).any()
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert (np.random.get_state()[1] == state[2]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_that_knows_epochs_is_told(workers) -> None:
    samples = DatasetSamples(Told(), 0, workers)
    for epoch in (3, 1):
        for images, _ in samples.batches([torch.tensor([4, 2]), torch.tensor([1])], epoch):
            assert images.unique().tolist() == [epoch]


def feed(n=100, held=5, world=1, **settings):
    rows = torch.arange(n + held)
    found = TrainSettings(macs=0.5, epochs=1, **settings)
    samples = TensorSamples(torch.zeros(n + held, 3, 4, 4), rows)
    return Feed.of(samples, rows[:n], rows[n:], found, world)


def test_batches_shrink_to_what_there_is() -> None:
    found = feed(n=11, held=5, world=2)
    assert (found.order.batch_size, found.order.per_epoch) == (10, 1)
    assert found.held_back.batch_size == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"world": 3}, "cannot be divided over the processes"),
        ({"world": 2, "accumulate": 33}, "cannot be divided over the processes"),
        ({"world": 8}, "too few held-back samples"),
        ({"world": 8, "n": 7, "held": 8}, "too few training samples"),
    ],
)
def test_batches_that_cannot_be_made(given, message) -> None:
    with pytest.raises(ConfigError, match=message):
        feed(**given)
