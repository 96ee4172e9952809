"""Open image files. No other module opens one."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from headkit.adapters.errors import DataError, first_line

from .formats import FORMATS
from .pixel_rule import CURRENT_RULE, PixelRule
from .pixels import MODES, CheckSize, TooLarge, UnreadableImage, to_pixels

if TYPE_CHECKING:  # running an exported model needs no torch
    from torch import Tensor

ImageLike: TypeAlias = (
    "str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray[Any, Any] "
    "| Tensor"
)

MAX_RESIZED_PIXELS = 25_000_000
"""Largest number of pixels of an image after its shorter edge was resized for the model.

A thin image has few pixels, but very many once its shorter edge has hundreds: 25 million take half
a second and 150 MB. An image that has more pixels itself may keep as many.
"""
_LONGEST_NAME = 1000
"""Maximum number of characters of a path that messages show."""


@dataclass(frozen=True)
class ImageReader:
    """The door through which every image reaches a model, in fit as in a server.

    Attributes:
        rule: Rule by which the image becomes pixels.
        channels: Number of the model's input channels, 1 or 3.
        resize_edge: Length of the shorter edge after resizing, in pixels; 0 if the edges are
            resized to lengths that do not depend on each other.
        max_pixels: Largest number of pixels of an image, or None for
            ``PIL.Image.MAX_IMAGE_PIXELS``.
        max_resized: Largest number of pixels after resizing.
    """

    rule: PixelRule = CURRENT_RULE
    channels: int = 3
    resize_edge: float = 0
    max_pixels: int | None = None
    max_resized: int = MAX_RESIZED_PIXELS

    @classmethod
    def for_model(
        cls, cfg: Mapping[str, Any], rule: PixelRule = CURRENT_RULE, max_pixels: int | None = None
    ) -> ImageReader:
        """Return the reader for a model.

        Args:
            cfg: The model's preprocessing, such as the ``pretrained_cfg`` of a head file.
            rule: See ``ImageReader``.
            max_pixels: Largest number of pixels of an image, before and after resizing.

        Raises:
            DataError: The number of the model's input channels is neither 1 nor 3.
        """
        channels, height, width = cfg["input_size"]
        if channels not in MODES:
            raise DataError(
                f"the number of the model's input channels is {channels}, expected 1 (grey "
                "images) or 3 (RGB images): compute features of other inputs yourself"
            )
        keeps_aspect = cfg.get("crop_mode", "center") == "center"
        edge = max(height, width) / cfg.get("crop_pct", 1.0) if keeps_aspect else 0
        resized = MAX_RESIZED_PIXELS if max_pixels is None else max_pixels
        return cls(rule, channels, edge, max_pixels, resized)

    def __call__(self, source: ImageLike) -> Image.Image:
        """Decode an image, see ``open_image``.

        Raises:
            DataError: See ``open_image``. The subclass ``TooLarge``: the image has too many pixels.
        """
        return open_image(source, self.rule, self.channels, self.check_size)

    def check_size(self, width: int, height: int) -> None:
        """Raise ``TooLarge`` if an image has too many pixels, as stored or once it is resized."""
        resized = self.resize_edge**2 * max(width, height) / max(min(width, height), 1)
        if self.max_pixels is not None and width * height > self.max_pixels:
            raise TooLarge(
                f"the image has {width} x {height} pixels, expected at most {self.max_pixels:,} in "
                "all: send a smaller image"
            )
        if resized > max(self.max_resized, width * height):
            raise TooLarge(
                f"the image has {width} x {height} pixels and needs {int(resized):,} pixels during "
                f"resizing, expected at most {self.max_resized:,}: crop the image"
            )


def open_image(
    source: ImageLike,
    rule: PixelRule = CURRENT_RULE,
    channels: int = 3,
    check_size: CheckSize | None = None,
) -> Image.Image:
    """Decode an image to 8-bit RGB or grey pixels. Of an animated image, take the first frame.

    Args:
        source: A path; the content of a file as bytes; a binary file, which this function closes;
            a Pillow image; an array uint8 ``[height, width]`` or ``[height, width, 1|3|4]``; or a
            torch tensor uint8 of such a shape or ``[1|3|4, height, width]``.
        rule: Rule by which the image becomes pixels.
        channels: 3 for RGB, 1 for grey.
        check_size: Function that is called with width and height in pixels before the image is
            decoded; it raises an error to refuse the image.

    Raises:
        UnreadableImage: The image cannot be read or decoded, is not a regular file, its format is
            not in ``FORMATS``, or it has more bits per channel than the rule allows.
        TooLarge: A file has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
        DataError: An array has another type or shape, or ``source`` is not an image.
    """
    with _opened(source) as (image, name):
        return to_pixels(image, name, rule, channels, check_size)


def read_size(content: bytes, check_size: CheckSize) -> tuple[int, int]:
    """Return the width and the height in pixels that an image file states; decode nothing.

    Raises:
        DataError: See ``open_image``, or whatever ``check_size`` raises.
    """
    with _opened(content) as (image, _):
        check_size(*image.size)
        return image.size


@contextmanager
def _opened(source: ImageLike) -> Iterator[tuple[Image.Image, str]]:
    """Open an image without decoding it; yield it and what messages call it.

    Errors inside the context mean that the image cannot be read, too.
    """
    if isinstance(source, os.PathLike):
        source = Path(source)
    name = f"image {_shorten(source)}" if isinstance(source, str | Path) else "the image"
    if isinstance(source, bytearray | memoryview):
        source = bytes(source)
    image = _image_in_memory(source)
    try:
        if image is not None:
            yield image, name
            return
        # Pillow never gets a path: Pillow 13 maps an uncompressed TIFF file into memory and then
        # turns it wrongly.
        content = read_image_file(source) if isinstance(source, str | Path) else source
        file = io.BytesIO(content) if isinstance(content, bytes) else content
        with Image.open(file, formats=tuple(FORMATS)) as opened:  # type: ignore[arg-type]
            _check_pixels(opened, name)
            yield opened, name
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name} is too large: {first_line(error)}") from error
    # On damaged bytes, Pillow raises errors of many types (OSError, SyntaxError, struct.error, …).
    # All of them mean that the image cannot be read.
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            # Pillow's message holds the path again, or the address of a buffer.
            reason = f"it is damaged or is not in one of the formats {', '.join(FORMATS)}"
        raise UnreadableImage(name, reason) from error
    finally:
        # Pillow closes only the files that it opened itself.
        if hasattr(source, "read") and not isinstance(source, Image.Image):
            source.close()  # type: ignore[union-attr]


def _check_pixels(image: Image.Image, name: str) -> None:
    """Refuse an image of which Pillow only warns, as it takes more than 1 GB with its copies."""
    most, (width, height) = Image.MAX_IMAGE_PIXELS, image.size
    if most is not None and width * height > most:
        raise TooLarge(
            f"{name} has {width} x {height} pixels, expected at most {most:,}: scale it down, or "
            "set PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        )


def read_image_file(path: str | Path) -> bytes:
    """Return the content of an image file.

    Raises:
        UnreadableImage: The file cannot be read, or is not a regular file.
    """
    try:
        _check_regular(path)
        return Path(path).read_bytes()
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENAMETOOLONG)
        reason = "no such file" + _hint(str(path)) if missing else str(error.strerror or error)
        raise UnreadableImage(f"image {_shorten(path)}", reason) from error


def _shorten(path: str | Path) -> str:
    """Return a path for a message. A long text may be an image in base64."""
    text = str(path)
    return text if len(text) <= _LONGEST_NAME else f"{text[:40]}… ({len(text):,} characters)"


def _hint(text: str) -> str:
    if text.startswith("data:") or len(text) > _LONGEST_NAME:
        return ": decode base64 text and pass the bytes"
    return ": fetch the address and pass the bytes" if "://" in text else ""


def _check_regular(path: str | Path) -> None:
    mode = os.stat(path).st_mode  # noqa: PTH116 - as fast as possible
    if stat.S_ISDIR(mode):
        raise UnreadableImage(f"image {_shorten(path)}", "it is a folder, expected a file")
    # Opening a named pipe would wait for a writer.
    if not stat.S_ISREG(mode):
        raise UnreadableImage(f"image {_shorten(path)}", "it is not a regular file")


def _image_in_memory(source: ImageLike) -> Image.Image | None:
    """Return a Pillow image of an array or a tensor; None for what Pillow has to open."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source, source.shape, "[height, width] or [height, width, 1|3|4]")
    if hasattr(source, "detach") and hasattr(source, "numpy"):
        array = source.detach().cpu().numpy()
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        return _from_array(
            np.moveaxis(array, 0, -1) if first else array,
            array.shape,
            "[height, width], [1|3|4, height, width] or [height, width, 1|3|4]",
        )
    if isinstance(source, str | Path | bytes) or hasattr(source, "read"):
        return None
    kind = type(source).__name__
    hint = ": pass one flat list, without labels" if kind in ("list", "tuple") else ""
    raise DataError(
        f"an image is {kind}, expected a path, bytes, a binary file, a Pillow "
        f"image, an array or a tensor{hint}"
    )


def _from_array(array: np.ndarray[Any, Any], shape: tuple[int, ...], expected: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype not in (np.uint8, np.uint16) or not fits or not array.size:
        hint = ""
        if array.dtype.kind == "f":
            hint = ": convert values from 0 to 1 with (255 * array).round().astype('uint8')"
        raise DataError(f"an image is {array.dtype} {list(shape)}, expected uint8 {expected}{hint}")
    if array.dtype == np.uint16 and array.ndim == 3:
        array = (array >> 8).astype(np.uint8)  # as Pillow reads a file with 16-bit colours
    return Image.fromarray(np.ascontiguousarray(array))
