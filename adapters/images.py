"""Open image files. No other module opens one, and the only list of formats is here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .errors import DataError, first_line

ImageLike = str | Path | Image.Image | np.ndarray[Any, Any]

FORMATS: dict[str, tuple[str, ...]] = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpeg", ".jpg"),
    "PNG": (".png",),
    "PPM": (".ppm",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's names of the formats that are read, and the suffixes of their files.

Pillow decodes some of the other formats before it knows the size of the image.
"""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Lowercase suffixes of the files in a folder that are images."""
_UNREAD = (
    "apng arw avif avifs blp bpg cr2 cr3 cur dcm dds dib djvu dng dpx emf eps exr fits fli fpx hdr "
    "heic heics heif heifs icns ico iff im j2c j2k jfif jls jng jp2 jpc jpe jpf jpm jps jpx jxl "
    "jxr mng mpo nef nii npy npz nrrd orf pam pbm pcx pdf pef pfm pgm pict pnm psd pxr qoi raf ras "
    "raw rgb rgba rw2 sgi sr2 srw svg svgz tga vips wbmp wdp webm wmf x3f xbm xcf xpm"
)
UNREAD_SUFFIXES = frozenset(f".{name}" for name in _UNREAD.split()) - SUFFIXES
"""Lowercase suffixes of other files that hold images, which are counted and not read."""


class UnreadableImage(DataError):
    """An image cannot be read or decoded.

    Attributes:
        reason: The reason, without the name of the image.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot read {name}: {reason}")
        self.reason = reason


class TooLarge(DataError):
    """An image has more pixels than allowed."""


def open_image(
    source: ImageLike | BinaryIO,
    check_size: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Decode an image to RGB. EXIF orientation is not applied.

    Args:
        source: A path, a Pillow image, an array uint8 ``[height, width, 3]``, or a binary file,
            which this function closes.
        check_size: Function that is called with width and height in pixels before the image is
            decoded; it raises an error to refuse the image.

    Raises:
        UnreadableImage: The image cannot be read or decoded, its format is not in ``FORMATS``, or
            it has more than 8 bits per channel.
        TooLarge: Pillow suspects a decompression bomb.
        DataError: An array has another type or shape.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name = f"image {source}" if isinstance(source, str | Path) else "the image"
    try:
        if isinstance(source, Image.Image):
            return _rgb(source, name, check_size)
        with Image.open(source, formats=tuple(FORMATS)) as opened:
            return _rgb(opened, name, check_size)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name} is too large: {first_line(error)}") from error
    # On damaged bytes, Pillow raises errors of many types (OSError, SyntaxError, struct.error, …).
    # All of them mean that the image cannot be read.
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        raise UnreadableImage(name, "no such file" if missing else first_line(error)) from error
    finally:
        # Pillow closes only the files that it opened itself.
        if not isinstance(source, str | Path | Image.Image):
            source.close()


def is_image(path: str | Path) -> bool:
    """Return True if the suffix of ``path`` is one of ``SUFFIXES``, in any case."""
    return os.path.splitext(path)[1].lower() in SUFFIXES  # noqa: PTH122 - as timm; much faster


def list_images(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return one or more images as a list; for a folder, the images below it, sorted by path.

    Raises:
        DataError: A folder has no images.
    """
    if isinstance(images, str | Path) and Path(images).is_dir():
        listed: list[ImageLike] = [p for p in sorted(Path(images).rglob("*")) if is_image(p)]
        if not listed:
            raise DataError(f"there are no images in the folder {images}")
        return listed
    if isinstance(images, str | Path | Image.Image | np.ndarray):
        return [images]
    return list(images)


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(
            f"an image array is {array.dtype} {list(array.shape)}, "
            "expected uint8 [height, width, 3]"
        )
    return Image.fromarray(array)


def _rgb(
    image: Image.Image, name: str, check_size: Callable[[int, int], None] | None
) -> Image.Image:
    if check_size is not None:
        check_size(*image.size)
    if image.mode.startswith(("I", "F")):
        # Pillow clips values above 255, so most of such an image would turn white.
        raise UnreadableImage(name, "it has more than 8 bits per channel; convert it to 8 bits")
    return image.convert("RGB")
