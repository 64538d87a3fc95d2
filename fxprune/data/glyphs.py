"""Characters from the fonts that ship with matplotlib, spoilt: a task that is not solved at once.

A character is drawn once per font as a mask. Every image then takes a mask, deforms it, and paints
it in some colour on some background. The fonts for testing are of families of which training sees
no member.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fxprune.data.images import ImageData, standardised
from fxprune.errors import ConfigError
from fxprune.inputs import check_count

__all__ = ["CHARACTERS", "TEST_FONTS", "TRAIN_FONTS", "glyphs"]

CHARACTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
"""The character of every class."""

# The fonts in matplotlib whose character map leads from every one of CHARACTERS to the glyph of
# that name; the others draw symbols, boxes or (cmmi10) old-style digits. A list, not a search:
# another release of matplotlib must not change the data unseen.
TRAIN_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("cmr10", "cmb10", "cmti10"),
)
"""Fonts of the training images: sans, mono and serif."""

TEST_FONTS = (
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmss10", "cmtt10"),
)
"""Fonts of the test images: serif, sans and mono of families that are not in `TRAIN_FONTS`."""

_CHUNK = 1024  # images made at a time; part of what a seed means
_FINE = 2  # masks are deformed at this multiple of the size, then averaged down
_MARGIN = 1.5  # side of a mask, in ems: the widest letters are wider than one
_BASELINE = 0.25  # below the middle of a mask, in ems

_ROTATION = 0.25  # largest, in radians
_SHEAR = 0.25  # largest
_SHRINK = (0.85, 1.4)  # of the character, which is one em high at 1
_STRETCH = 0.2  # largest logarithm of height over width
_SHIFT = 0.2  # largest, in halves of the image
_CONTRAST = (0.3, 1.0)  # of the character's brightness and the background's, white over black 1
_TINT = 0.1  # standard deviation of the channels of one colour
_CLUTTER = 0.1  # largest standard deviation of the smooth background
_CLUTTER_CELLS = (2, 5)  # cells per side: a gradient, and blobs
_NOISE = 0.1  # largest standard deviation of the noise of single pixels


def glyphs(
    size: int = 32, per_class: int = 80, test_per_class: int = 20, seed: int = 0
) -> ImageData:
    """Return images of the 62 digits and letters, in fonts that differ from training to testing.

    Every image has its own rotation, shear, scale, shift, colours, contrast, background, blur and
    noise. Classes are in the order of `CHARACTERS`. Some cannot be told apart in every font (0 and
    O, 1, l and I), so that no network reaches 100 %.

    Parameters
    ----------
    size : int
        Height and width in pixels, at least 8.
    per_class : int
        Training images of every class, spread evenly over `TRAIN_FONTS`.
    test_per_class : int
        Test images of every class, spread evenly over `TEST_FONTS`.
    seed : int
        Of everything random, not of the split into fonts. At least 0.

    Returns
    -------
    ImageData
        In random order. The same for the same arguments; the training images do not depend on
        `test_per_class`. Torch's global random state is not touched.

    Raises
    ------
    ConfigError
        When matplotlib is not installed or lacks a font, or an argument is not such an integer.

    Notes
    -----
    The fonts come with matplotlib under free licences: DejaVu (Bitstream Vera licence), STIX (SIL
    Open Font License), Computer Modern (BaKoMa licence). They are read from the installed package;
    fxprune distributes none.
    """
    check_count("size", size, least=8)
    check_count("per_class", per_class)
    check_count("test_per_class", test_per_class)
    check_count("seed", seed, least=0)
    folder = _font_folder()
    parts = []
    for stream, (fonts, count) in enumerate(
        ((TRAIN_FONTS, per_class), (TEST_FONTS, test_per_class))
    ):
        generator = torch.Generator().manual_seed(2 * seed + stream)
        masks = _render(folder, fonts, _FINE * size)
        parts.append(_part(masks, count, size, generator))
    (train, train_labels), (test, test_labels) = parts
    train, test = standardised(train, test)
    return ImageData(train, train_labels, test, test_labels, len(CHARACTERS))


def _font_folder() -> Path:
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(
            "The glyphs data set needs the fonts of matplotlib, which is not installed.",
            hint="pip install 'fxprune[plot]'",
        ) from error
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _render(folder: Path, fonts: Sequence[str], em: int) -> Tensor:
    """Draw all characters in all fonts: masks in [0, 1], (fonts, characters, side, side)."""
    side = round(_MARGIN * em)
    place = (side / 2, side / 2 + _BASELINE * em)
    masks = []
    for name in fonts:
        path = folder / f"{name}.ttf"
        try:
            # From memory: for a missing file Pillow takes a font of that name from anywhere. The
            # basic layout is the one that every build of Pillow has.
            file = BytesIO(path.read_bytes())
            font = ImageFont.truetype(file, em, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise ConfigError(
                "A font of the glyphs data set cannot be read.",
                where=str(path),
                seen=str(error),
                hint="install a matplotlib that ships it: pip install 'fxprune[plot]'",
            ) from error
        for character in CHARACTERS:
            canvas = Image.new("L", (side, side))
            ImageDraw.Draw(canvas).text(place, character, fill=255, font=font, anchor="ms")
            masks.append(torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8))
    return torch.stack(masks).view(len(fonts), len(CHARACTERS), side, side) / 255


def _part(
    masks: Tensor, per_class: int, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return images and labels of one part: `per_class` of every class, in random order."""
    n_fonts, n_classes = masks.shape[:2]
    # Fonts in turn, beginning anywhere: none is used more than once more than another.
    first = torch.randint(n_fonts, (n_classes, 1), generator=generator)
    fonts = ((first + torch.arange(per_class)) % n_fonts).flatten()
    labels = torch.arange(n_classes).repeat_interleave(per_class)
    order = torch.randperm(len(labels), generator=generator)
    fonts, labels = fonts[order], labels[order]
    images = []
    for start in range(0, len(order), _CHUNK):
        rows = slice(start, start + _CHUNK)
        deformed = _deform(masks[fonts[rows], labels[rows]], size, generator)
        images.append(_paint(deformed, generator))
    return torch.cat(images), labels


def _deform(masks: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Turn, shear, scale and shift masks (n, side, side), and bring them to (n, 1, size, size)."""
    n = len(masks)
    angle = _uniform(n, -_ROTATION, _ROTATION, generator)
    shear = _uniform(n, -_SHEAR, _SHEAR, generator)
    stretch = _uniform(n, -_STRETCH / 2, _STRETCH / 2, generator).exp()
    shrink = _uniform(n, *_SHRINK, generator)
    cos, sin = angle.cos() * shrink, angle.sin() * shrink
    # From places in the image to places in the mask: what a step across and one down come to.
    across = torch.stack([cos, sin], 1) / stretch[:, None]
    down = torch.stack([cos * shear - sin, sin * shear + cos], 1) * stretch[:, None]
    shift = _uniform(2 * n, -_SHIFT, _SHIFT, generator).view(n, 2) * shrink[:, None]
    theta = torch.stack([across, down, shift], 2) / _MARGIN
    side = _FINE * size
    grid = F.affine_grid(theta, [n, 1, side, side], align_corners=False)
    return F.avg_pool2d(F.grid_sample(masks[:, None], grid, align_corners=False), _FINE)


def _paint(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Give masks (n, 1, size, size) colours, a background, blur and noise: (n, 3, size, size)."""
    n, _, size, _ = masks.shape
    contrast = _uniform(n, *_CONTRAST, generator)
    dark = _uniform(n, 0, 1, generator) * (1 - contrast)
    inverted = torch.rand(n, generator=generator) < 0.5
    background = torch.where(inverted, dark, dark + contrast)
    character = torch.where(inverted, dark + contrast, dark)
    colours = torch.stack([background, character])[..., None]
    colours = colours + torch.randn(2, n, 3, generator=generator) * _TINT
    under, over = colours[0, ..., None, None], colours[1, ..., None, None]
    for cells in _CLUTTER_CELLS:
        blobs = torch.randn(n, 3, cells, cells, generator=generator)
        blobs = F.interpolate(blobs, size=(size, size), mode="bicubic", align_corners=False)
        under = under + blobs * _uniform(n, 0, _CLUTTER, generator).view(n, 1, 1, 1)
    images = (under + masks * (over - under)).clamp(0, 1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = images.lerp(blurred, torch.rand(n, 1, 1, 1, generator=generator))
    noise = torch.randn(images.shape, generator=generator)
    noise *= _uniform(n, 0, _NOISE, generator).view(n, 1, 1, 1)
    return (images + noise).clamp(0, 1)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.empty(n).uniform_(low, high, generator=generator)
