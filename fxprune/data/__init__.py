"""Data to train and measure on: two sets that need no download, and folders of image files."""

from fxprune.data.digits import digits
from fxprune.data.epochs import EpochData
from fxprune.data.folder import image_folder
from fxprune.data.glyphs import glyphs
from fxprune.data.images import ImageData

__all__ = ["EpochData", "ImageData", "digits", "glyphs", "image_folder"]
