from __future__ import annotations

import sys

import pytest
import torch

from fxprune.data import digits
from fxprune.errors import ConfigError

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def data():
    return digits()


def test_shapes_and_types(data):
    assert data.train_images.shape == (1438, 3, 32, 32)
    assert data.test_images.shape == (359, 3, 32, 32)
    assert data.train_images.dtype is torch.float32
    assert data.train_labels.dtype is torch.int64
    assert (len(data.train_labels), len(data.test_labels)) == (1438, 359)


def test_training_images_are_standardised_and_grey(data):
    deviation, mean = torch.std_mean(data.train_images)
    assert mean.abs() < 1e-5
    assert deviation == pytest.approx(1, abs=1e-4)
    for images in (data.train_images, data.test_images):
        assert torch.equal(images[:, 0], images[:, 2])


def test_every_class_gives_a_fifth_to_testing(data):
    train, test = data.train_labels.bincount(), data.test_labels.bincount()
    assert len(train) == len(test) == 10
    assert ((test - 0.2 * (train + test)).abs() <= 0.5).all()


def test_no_image_is_in_both_parts():
    data = digits(size=8)
    rows = torch.cat([data.train_images, data.test_images])[:, 0].flatten(1)
    assert len(rows) == 1797
    assert len(rows.unique(dim=0)) == 1797


def test_the_seed_decides_the_split_and_nothing_else_does(data):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(digits().test_images, data.test_images)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(digits(seed=1).test_labels, data.test_labels)


def test_images_can_have_another_size():
    assert digits(size=8).train_images.shape[2:] == (8, 8)


@pytest.mark.parametrize("size", [0, 2.5])
def test_sizes_must_be_counts(size):
    with pytest.raises(ConfigError, match="'size' argument must be an integer >= 1"):
        digits(size=size)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'fxprune\[demo\]'"):
        digits()
