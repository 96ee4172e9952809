"""Turn an opened image into the pixels of a rule."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from headkit.adapters.errors import DataError

from .jpeg import MAX_SCANS, count_scans
from .pixel_rule import PixelRule

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode of the pixels, by the number of a model's input channels."""
MIN_RANGE_16_BITS = 4096
"""If all values of a 16-bit image are smaller, its upper 8 bits have at most 16 grey levels.

Such files come from cameras of 10 or 12 bits, and their owner must decide how to scale them.
"""
_ORIENTATION_TAG = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

CheckSize = Callable[[int, int], None]


class UnreadableImage(DataError):
    """An image cannot be read or decoded.

    Attributes:
        reason: The reason, without the name of the image.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read {name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.reason)


class TooLarge(DataError):
    """An image has more pixels than allowed."""


def to_pixels(
    image: Image.Image, name: str, rule: PixelRule, channels: int, check_size: CheckSize | None
) -> Image.Image:
    """Decode an opened image to 8-bit RGB or grey pixels; messages call it ``name``.

    See ``open.open_image``.
    """
    if check_size is not None:
        check_size(*image.size)
    _check_scans(image, name)
    image.load()  # Pillow turns a TIFF file itself and then removes its orientation
    orientation = _orientation(image) if rule.orientation == "exif" else None
    if image.mode.startswith(("I", "F")):
        image = _take_high_byte(image, name, rule)
    if orientation in _TRANSPOSES:
        image = image.transpose(_TRANSPOSES[orientation])
    if image.mode == "La":  # Pillow cannot convert it to RGBA
        image = image.convert("LA")
    if rule.alpha == "white" and image.has_transparency_data:
        image = _put_on_white(image)
    if channels == 1 and image.mode not in ("1", "L"):
        image = image.convert("RGB")  # not every mode converts to grey
    # A conversion to the same mode would be a copy.
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _check_scans(image: Image.Image, name: str) -> None:
    file = getattr(image, "fp", None)
    if image.format not in ("JPEG", "MPO") or file is None:
        return
    file.seek(0)
    scans = count_scans(file.read())
    if scans > MAX_SCANS:
        raise UnreadableImage(name, f"it has {scans:,} scans, expected at most {MAX_SCANS}")


def _put_on_white(image: Image.Image) -> Image.Image:
    """Return an image without transparency, strip by strip: a copy of it needs much memory."""
    width, height = image.size
    result, rows = Image.new("RGB", image.size), max(1, 2**20 // max(width, 1))
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        layer = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        result.paste(Image.alpha_composite(white, layer).convert("RGB"), box)
    return result


def _orientation(image: Image.Image) -> int | None:
    with suppress(Exception):  # damaged EXIF data do not make the pixels unreadable
        orientation = image.getexif().get(_ORIENTATION_TAG)
        return orientation if isinstance(orientation, int) else None
    return None


def _take_high_byte(image: Image.Image, name: str, rule: PixelRule) -> Image.Image:
    """Return the upper 8 bits of a 16-bit grey image."""
    # Pillow opens a PPM file, and before Pillow 11 a PNG file, of 16 bits with 32 bits per pixel.
    is_16_bit = image.mode.startswith("I;16") or (
        image.mode == "I" and getattr(image, "format", None) in ("PNG", "PPM")
    )
    # Pillow's own conversion clips values above 255, so most of such an image would turn white.
    if rule.depth != "high_byte" or not is_16_bit:
        raise UnreadableImage(name, "it has more than 8 bits per channel; convert it to 8 bits")
    values = np.asarray(image).astype(np.uint16)
    largest = int(values.max())
    if 0 < largest < MIN_RANGE_16_BITS:
        raise UnreadableImage(
            name,
            f"its largest value is {largest:,} of 65,535, so its upper 8 bits are almost empty; "
            "scale it to 8 bits",
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
