from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms

from fxprune.data import image_folder
from fxprune.errors import ConfigError

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def noise(seed, width=48, height=40):
    pixels = torch.randint(
        256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(pixels.numpy())


def write(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def fill(root: Path, counts, first=0):
    """Write images no two of which are equal: `counts` of every class."""
    for name, count in counts.items():
        for _ in range(count):
            write(root / name / f"{first:03}.png", noise(first))
            first += 1


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "train", {"ant": 4, "bee": 3})
    fill(tmp_path / "val", {"ant": 2, "bee": 1}, first=100)
    return tmp_path


def names(files):
    return [Path(path).name for path, _ in files.samples]


def pictures(files):
    return torch.stack([image for image, _ in files])


# -- layouts


def test_folders_for_training_and_validation(root):
    data = image_folder(root, size=32)
    assert data.classes == ("ant", "bee")
    assert data.n_classes == 2
    assert names(data.train) == [f"{i:03}.png" for i in range(7)]
    assert [label for _, label in data.train] == [0, 0, 0, 0, 1, 1, 1]
    assert names(data.test) == ["100.png", "101.png", "102.png"]
    assert [label for _, label in data.test] == [0, 0, 1]


def test_a_test_folder_serves_where_there_is_no_val(root):
    (root / "val").rename(root / "test")
    assert names(image_folder(root, size=32).test) == ["100.png", "101.png", "102.png"]


def test_val_is_preferred_to_test(root):
    fill(root / "test", {"ant": 1, "bee": 1}, first=200)
    assert names(image_folder(str(root), size=32).test) == ["100.png", "101.png", "102.png"]


def test_one_folder_gives_a_fifth_of_every_class_to_testing(tmp_path):
    fill(tmp_path, {"ant": 10, "bee": 5, "cat": 2})
    data = image_folder(tmp_path, size=32)
    assert Counter(label for _, label in data.train.samples) == {0: 8, 1: 4, 2: 1}
    assert Counter(label for _, label in data.test.samples) == {0: 2, 1: 1, 2: 1}
    assert sorted(names(data.train) + names(data.test)) == [f"{i:03}.png" for i in range(17)]
    for path, label in data.train.samples + data.test.samples:
        assert Path(path).parent.name == data.classes[label]


def test_the_seed_decides_the_split(tmp_path):
    fill(tmp_path, {"ant": 10, "bee": 10})
    splits = [names(image_folder(tmp_path, size=32, seed=seed).test) for seed in (0, 0, 1)]
    assert splits[0] == splits[1]
    assert splits[0] != splits[2]


def test_a_class_may_be_called_train(tmp_path):
    fill(tmp_path, {"car": 2, "train": 2})
    assert image_folder(tmp_path, size=32).classes == ("car", "train")


def test_what_is_hidden_or_no_image_is_left_out(root):
    (root / "train" / ".cache").mkdir()
    (root / "train" / "ant" / "._000.png").write_bytes(b"notes")
    (root / "train" / "ant" / "readme.txt").write_text("about ants")
    assert names(image_folder(root, size=32).train) == [f"{i:03}.png" for i in range(7)]


# -- pictures


@pytest.mark.parametrize("size", [16, 64, 65, 100])
def test_shapes_and_types(root, size):
    data = image_folder(root, size=size)
    for part in (data.train, data.test):
        for image, label in part:
            assert image.shape == (3, size, size)
            assert image.dtype is torch.float32
            assert type(label) is int
    assert torch.equal(data.example, data.test[0][0][None])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_every_kind_of_image_becomes_normalised_rgb(tmp_path, mode):
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            write(tmp_path / part / name / "0.png", Image.new(mode, (70, 70), "white"))
    data = image_folder(tmp_path, size=70)
    white = ((1 - MEAN) / DEVIATION).expand(3, 70, 70)
    for image, _ in (data.train[0], data.test[0]):
        torch.testing.assert_close(image, white)


def test_large_test_images_lose_an_eighth_of_the_shorter_side(root):
    data = image_folder(root, size=112)
    image = Image.open(data.test.samples[0][0])
    whole = transforms.functional.resize(image, 128)
    centre = transforms.functional.center_crop(whole, 112)
    expected = (transforms.functional.to_tensor(centre) - MEAN) / DEVIATION
    torch.testing.assert_close(data.test[0][0], expected)


def test_small_test_images_are_whole(root):
    data = image_folder(root, size=40)
    image = Image.open(data.test.samples[0][0])  # 48 x 40
    expected = (transforms.functional.to_tensor(image)[:, :, 4:44] - MEAN) / DEVIATION
    torch.testing.assert_close(data.test[0][0], expected)


def test_small_training_images_are_padded_and_cropped_and_flipped(root):
    data = image_folder(root, size=40)
    plain = pictures(image_folder(root, size=40).test)[0]
    data.train.samples = data.test.samples[:1]
    padded = torch.nn.functional.pad(plain * DEVIATION + MEAN, (5, 5, 5, 5))
    windows = {
        (y, x, flipped): (window.flip(2) if flipped else window)
        for y in range(11)
        for x in range(11)
        for flipped in (False, True)
        for window in [padded[:, y : y + 40, x : x + 40]]
    }
    found = set()
    for epoch in range(40):
        data.set_epoch(epoch)
        image = data.train[0][0] * DEVIATION + MEAN
        found |= {
            key for key, window in windows.items() if torch.allclose(image, window, atol=1e-5)
        }
    # One place each; 40 draws of 242 give few of them twice.
    assert 30 <= len(found) <= 40
    assert 10 <= sum(flipped for _, _, flipped in found) <= 30


def test_large_training_images_are_crops_of_random_size(tmp_path):
    # Brightness rises from left to right: the range that a crop shows is its width.
    ramp = torch.arange(256, dtype=torch.uint8).repeat(256, 1).numpy()
    for part in ("train", "val"):
        for name in ("ant", "bee"):
            write(tmp_path / part / name / "0.png", Image.fromarray(ramp))
    data = image_folder(tmp_path, size=96)
    widths, flips = [], []
    for epoch in range(40):
        data.set_epoch(epoch)
        row = (data.train[0][0] * DEVIATION + MEAN)[0, 48]
        widths.append(float((row[-1] - row[0]).abs()))
        flips.append(bool(row[0] > row[-1]))
    assert min(widths) < 0.5
    assert max(widths) > 0.8
    assert 10 <= sum(flips) <= 30


# -- randomness


def test_seed_epoch_and_index_decide_the_picture(root):
    first, again = (image_folder(root, size=32, seed=7) for _ in range(2))
    for data in (first, again):
        data.set_epoch(3)
    expected = [first.train[i][0] for i in range(7)]
    for i in reversed(range(7)):
        assert torch.equal(again.train[i][0], expected[i])
        assert torch.equal(again.train[i - 7][0], expected[i])
    other_seed = image_folder(root, size=32, seed=8)
    other_seed.set_epoch(3)
    assert not torch.equal(pictures(other_seed.train), torch.stack(expected))
    again.set_epoch(4)
    assert not torch.equal(pictures(again.train), torch.stack(expected))


def test_equal_files_get_crops_of_their_own(root):
    data = image_folder(root, size=32)
    data.train.samples = data.train.samples[:1] * 7
    assert len(pictures(data.train).flatten(1).unique(dim=0)) == 7


def test_test_images_do_not_depend_on_seed_or_epoch(root):
    data, other = image_folder(root, size=32), image_folder(root, size=32, seed=1)
    other.set_epoch(5)
    assert torch.equal(pictures(data.test), pictures(other.test))


def test_global_random_state_is_neither_used_nor_changed(root):
    torch.manual_seed(1)
    first = pictures(image_folder(root, size=32).train)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = pictures(image_folder(root, size=32).train)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)


def test_workers_make_no_difference_even_when_they_outlive_an_epoch(root):
    data = image_folder(root, size=32)
    loader = DataLoader(data.train, batch_size=3, num_workers=2, persistent_workers=True)
    seen = []
    for epoch in range(2):
        data.set_epoch(epoch)
        seen.append(torch.cat([images for images, _ in loader]))
        assert torch.equal(seen[-1], pictures(data.train))
    assert not torch.equal(*seen)


# -- errors


def refuse(path, message, **arguments):
    with pytest.raises(ConfigError, match=message):
        image_folder(path, **arguments)


def test_no_folder(tmp_path):
    refuse(tmp_path / "none", r"(?s)no such folder of images.*none.*seen: nothing.*next: ")
    file = tmp_path / "file"
    file.touch()
    refuse(file, "seen: a file")


def test_no_classes(tmp_path):
    refuse(tmp_path, r"(?s)at least two classes.*seen: no class")


def test_one_class(tmp_path):
    fill(tmp_path, {"ant": 3})
    refuse(tmp_path, r"(?s)at least two classes.*seen: one class: 'ant'")


def test_one_class_for_testing(root):
    for file in (root / "val" / "bee").iterdir():
        file.unlink()
    (root / "val" / "bee").rmdir()
    refuse(root, r"(?s)at least two classes.*where: .*val.*one class: 'ant'")


def test_different_classes(root):
    fill(root / "train", {"cat": 1, "dog": 1})
    fill(root / "val", {"fox": 1})
    refuse(root, r"(?s)classes .* differ.*only in train: cat, dog; only in val: fox")


def test_many_different_classes_are_not_all_listed(root):
    fill(root / "train", {f"c{i}": 1 for i in range(8)})
    refuse(root, r"only in train: c0, c1, c2, c3, c4 and 3 more; only in val: none")


def test_nothing_to_test_with(root):
    (root / "val").rename(root / "other")
    refuse(root, r"(?s)train with and images to test with.*seen: a folder 'train' only")


def test_nothing_to_train_with(root):
    (root / "train").rename(root / "other")
    refuse(root, r"(?s)train with and images to test with.*seen: a folder 'val' only")


def test_a_class_without_images(root):
    (root / "train" / "cat").mkdir()
    (root / "val" / "cat").mkdir()
    refuse(root, r"(?s)at least 1 image here.*where: .*train.*fewer in cat.*\.png")


def test_a_class_too_small_to_split(tmp_path):
    fill(tmp_path, {"ant": 5, "bee": 1})
    refuse(tmp_path, r"(?s)at least 2 images here.*fewer in bee")


@pytest.mark.parametrize("damage", ["text", "empty", "truncated"])
def test_an_unreadable_image_is_named(root, damage):
    file = root / "train" / "bee" / "004.png"
    whole = file.read_bytes()
    file.write_bytes({"text": b"not an image", "empty": b"", "truncated": whole[:2000]}[damage])
    data = image_folder(root, size=32)
    assert data.train[3][0].shape == (3, 32, 32)
    with pytest.raises(
        ConfigError, match=r"(?s)image cannot be read.*bee.004\.png.*seen: .*next: "
    ):
        data.train[4]


def test_an_unreadable_image_is_named_from_a_worker(root):
    (root / "train" / "bee" / "004.png").write_bytes(b"not an image")
    loader = DataLoader(image_folder(root, size=32).train, num_workers=1)
    with pytest.raises(ConfigError, match=r"bee.004\.png") as caught:
        list(loader)
    # The frames of the traceback hold the loader; if it has to be found as garbage, torch waits 5 s.
    caught.value.with_traceback(None)
    del caught


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "'size' argument must be an integer >= 1"),
        ({"seed": -1}, "'seed' argument must be an integer >= 0"),
        ({"seed": 0.5}, "'seed' argument must be an integer >= 0"),
    ],
)
def test_wrong_arguments_are_refused(root, arguments, message):
    refuse(root, message, **arguments)


@pytest.mark.parametrize("epoch", [-1, 1.0, None])
def test_epochs_are_counts(root, epoch):
    data = image_folder(root, size=32)
    with pytest.raises(ConfigError, match="'epoch' argument must be an integer >= 0"):
        data.set_epoch(epoch)
