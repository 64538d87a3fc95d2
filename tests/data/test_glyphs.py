from __future__ import annotations

import importlib
import sys
from collections import Counter

import pytest
import torch

from fxprune.data import glyphs
from fxprune.data.glyphs import CHARACTERS, TEST_FONTS, TRAIN_FONTS
from fxprune.errors import ConfigError

pytest.importorskip("matplotlib")

from matplotlib.ft2font import FT2Font

# `fxprune.data.glyphs` as an attribute is the function.
module = importlib.import_module("fxprune.data.glyphs")

ADOBE_NAMES = "zero one two three four five six seven eight nine".split() + list(CHARACTERS[10:])
PER_CLASS, TEST_PER_CLASS = 17, 8


@pytest.fixture(scope="module")
def data():
    return glyphs(per_class=PER_CLASS, test_per_class=TEST_PER_CLASS)


@pytest.fixture(scope="module")
def masks():
    return module._render(module._font_folder(), TRAIN_FONTS + TEST_FONTS, 64)


def fonts_in_matplotlib():
    return {path.stem: FT2Font(path) for path in sorted(module._font_folder().glob("*.ttf"))}


# -- fonts


def test_the_fonts_are_those_that_map_every_character_to_its_glyph():
    usable = set()
    for name, font in fonts_in_matplotlib().items():
        index = font.get_charmap()
        glyph_names = [font.get_glyph_name(index.get(ord(c), 0)) for c in CHARACTERS]
        if glyph_names == ADOBE_NAMES:
            usable.add(name)
    assert usable == {*TRAIN_FONTS, *TEST_FONTS}
    assert len(usable) == len(TRAIN_FONTS) + len(TEST_FONTS)


def test_no_family_is_in_both_parts():
    fonts = fonts_in_matplotlib()
    train, test = ({fonts[name].family_name for name in part} for part in (TRAIN_FONTS, TEST_FONTS))
    assert train == {"DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "cmr10", "cmb10", "cmti10"}
    assert test == {"STIXGeneral", "cmss10", "cmtt10"}


def test_training_and_testing_draw_their_own_fonts(monkeypatch):
    drawn = []

    def render(folder, fonts, em):
        drawn.append(fonts)
        return torch.ones(len(fonts), len(CHARACTERS), em, em)

    monkeypatch.setattr(module, "_render", render)
    glyphs(size=8, per_class=1, test_per_class=1)
    assert drawn == [TRAIN_FONTS, TEST_FONTS]


def test_every_class_has_every_font_equally_often(monkeypatch):
    monkeypatch.setattr(module, "_deform", lambda masks, size, generator: masks)
    monkeypatch.setattr(module, "_paint", lambda masks, generator: masks)
    fonts, classes = torch.meshgrid(torch.arange(15), torch.arange(62), indexing="ij")
    masks = torch.stack([fonts, classes], 2)
    images, labels = module._part(masks, PER_CLASS, 8, torch.Generator().manual_seed(0))
    assert torch.equal(images[:, 1], labels)
    counts = Counter((int(font), int(label)) for font, label in images)
    assert len(counts) == 15 * 62
    assert set(counts.values()) == {1, 2}


def test_characters_of_one_font_differ_from_one_another(masks):
    for font in masks:
        distance = torch.cdist(font.flatten(1)[None], font.flatten(1)[None], p=1)[0]
        distance.fill_diagonal_(torch.inf)
        ink = font.sum((1, 2))
        assert (distance > 0.05 * ink).all()  # l and I of the sans are closest


def test_characters_are_whole(masks):
    assert masks.shape == (21, 62, 96, 96)
    assert (masks.amax((2, 3)) > 0.9).all()
    assert masks[..., 0, :].sum() == masks[..., -1, :].sum() == 0
    assert masks[..., 0].sum() == masks[..., -1].sum() == 0


# -- images


def test_shapes_and_types(data):
    assert data.train_images.shape == (62 * PER_CLASS, 3, 32, 32)
    assert data.test_images.shape == (62 * TEST_PER_CLASS, 3, 32, 32)
    assert data.train_images.dtype is data.test_images.dtype is torch.float32
    assert data.train_labels.dtype is data.test_labels.dtype is torch.int64
    assert data.n_classes == len(CHARACTERS) == 62


def test_the_defaults_are_eighty_and_twenty_of_every_class():
    data = glyphs(size=8)
    assert data.train_labels.bincount().tolist() == [80] * 62
    assert data.test_labels.bincount().tolist() == [20] * 62


def test_classes_are_balanced_and_mixed(data):
    assert data.train_labels.bincount().tolist() == [PER_CLASS] * 62
    assert data.test_labels.bincount().tolist() == [TEST_PER_CLASS] * 62
    assert len(data.train_labels[:62].unique()) > 30
    assert len(data.test_labels[:62].unique()) > 30


def test_training_images_are_standardised(data):
    deviation, mean = torch.std_mean(data.train_images.double())
    assert mean.abs() < 1e-5
    assert deviation == pytest.approx(1, abs=1e-4)


def test_test_images_share_the_training_images_scale(data):
    # Both hold black and white, which are 0 and 1 before.
    for extreme in (torch.amin, torch.amax):
        assert torch.equal(extreme(data.train_images, ()), extreme(data.test_images, ()))


def test_no_two_images_are_equal(data):
    rows = torch.cat([data.train_images, data.test_images]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows)


def test_images_are_coloured_and_differ_in_brightness(data):
    channels = data.train_images.mean((2, 3))
    assert channels.std(1).mean() > 0.1
    assert channels.mean(1).std() > 0.3


def test_every_image_shows_its_character(monkeypatch):
    shown = glyphs(per_class=1, test_per_class=15)

    def nothing(folder, fonts, em):
        return torch.zeros(len(fonts), len(CHARACTERS), em, em)

    monkeypatch.setattr(module, "_render", nothing)
    monkeypatch.setattr(module, "standardised", lambda train, test: (train, test))
    empty = glyphs(per_class=1, test_per_class=15)
    monkeypatch.undo()
    assert torch.equal(shown.test_labels, empty.test_labels)
    # Black and white bring the standardised images back to [0, 1].
    low, high = shown.test_images.amin(), shown.test_images.amax()
    ink = ((shown.test_images - low) / (high - low) - empty.test_images).abs().amax((1, 2, 3))
    assert ink.min() > 0.1
    assert ink.median() > 0.4


# -- randomness


def test_the_seed_decides_all(data):
    again = glyphs(per_class=PER_CLASS, test_per_class=TEST_PER_CLASS)
    other = glyphs(per_class=PER_CLASS, test_per_class=TEST_PER_CLASS, seed=1)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(data, name), getattr(again, name))
        assert not torch.equal(getattr(data, name), getattr(other, name))


def test_global_random_state_is_neither_used_nor_changed():
    torch.manual_seed(1)
    first = glyphs(size=8, per_class=1, test_per_class=1)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = glyphs(size=8, per_class=1, test_per_class=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.train_images, second.train_images)


def test_the_size_of_the_test_part_does_not_change_the_training_images(data):
    other = glyphs(per_class=PER_CLASS, test_per_class=1)
    assert torch.equal(data.train_images, other.train_images)


def test_parts_of_neighbouring_seeds_share_no_randomness():
    # Labels are shuffled in both parts: one stream for both would give one order.
    orders = [
        labels.tolist()
        for seed in (0, 1)
        for data in [glyphs(size=8, per_class=2, test_per_class=2, seed=seed)]
        for labels in (data.train_labels, data.test_labels)
    ]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("size", [8, 33, 64])
def test_images_can_have_another_size(size):
    data = glyphs(size=size, per_class=1, test_per_class=1)
    assert data.train_images.shape == data.test_images.shape == (62, 3, size, size)


# -- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "'size' argument must be an integer >= 8"),
        ({"size": 32.0}, "'size' argument must be an integer >= 8"),
        ({"per_class": 0}, "'per_class' argument must be an integer >= 1"),
        ({"test_per_class": True}, "'test_per_class' argument must be an integer >= 1"),
        ({"seed": -1}, "'seed' argument must be an integer >= 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        glyphs(**arguments)


def test_the_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'fxprune\[plot\]'"):
        glyphs()


def test_a_missing_font_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match=r"where: .*fonts/ttf/DejaVuSans\.ttf"):
        glyphs()
