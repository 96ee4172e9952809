"""Iterate over the images that a caller names: one, several, or those below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from headkit.adapters.errors import DataError
from headkit.adapters.system_files import is_system_name

from .formats import is_image
from .open import ImageLike

ONE_IMAGE = "the image"
"""Name of an image that has no path and stands alone."""


def iterate_images(images: ImageLike | Iterable[ImageLike]) -> Iterator[tuple[str, ImageLike]]:
    """Yield the name and the source of each image, one at a time.

    Args:
        images: One image; an array ``[N, height, width, 3]`` or a tensor ``[N, 3, height, width]``
            of several; a folder, for the images below it, sorted by path; or an iterable of
            images, such as a generator or a column of paths, which is never read ahead. Hidden and
            system files of a folder are left out, as ``fit`` does.

    Raises:
        DataError: A folder has no images, or ``images`` is neither an image nor an iterable of
            images.
    """
    if isinstance(images, str | os.PathLike) and os.fspath(images) and os.path.isdir(images):  # noqa: PTH112
        found = False
        for path in _below(os.fspath(images), ()):
            found = True
            yield path, Path(path)
        if not found:
            raise DataError(f"there are no images in the folder {os.fspath(images)}")
        return
    single = _is_single(images)
    several: Iterable[Any] = [images] if single else images  # type: ignore[assignment]
    for number, image in enumerate(several):
        if isinstance(image, str | os.PathLike):
            # The texts of an address and of nothing must stay as they are.
            yield os.fspath(image), image if isinstance(image, str) else Path(image)
        else:
            yield (ONE_IMAGE if single else f"image {number}"), image


def list_images(images: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """Return one or more images as a list, see ``iterate_images``.

    Raises:
        DataError: See ``iterate_images``.
    """
    return [image for _, image in iterate_images(images)]


def _is_single(images: object) -> bool:
    """Return whether ``images`` is one image; raise unless it is an image or images."""
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview):
        return True
    # Pillow's images have ``convert`` and ``size``; files have ``read``; tensors have ``detach``.
    pillow = hasattr(images, "convert") and hasattr(images, "size")
    if (hasattr(images, "read") or pillow) and not isinstance(images, type):
        return True
    if isinstance(images, np.ndarray):
        # A column of paths or images has one dimension.
        return images.ndim < 4 and not (images.ndim == 1 and images.dtype.kind in "OU")
    if hasattr(images, "detach") and hasattr(images, "ndim"):
        return int(images.ndim) < 4
    advice = "an image, a folder or an iterable of images"
    if isinstance(images, Mapping) or hasattr(images, "columns"):
        raise DataError(
            f"images is {type(images).__name__}, expected {advice}: pass the column or the values "
            "that hold the images"
        )
    if not isinstance(images, Iterable):
        raise DataError(f"images is {type(images).__name__}, expected {advice}")
    return False


def _below(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the paths of the images below a folder, sorted by their parts.

    A link is followed unless it leads to a folder above it. A folder below that cannot be read
    stands for the images in it: opening it as an image gives the error.

    Raises:
        DataError: ``folder`` cannot be read.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 - as fast as possible
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not is_system_name(entry.name)]
    except OSError as error:
        if above:
            yield folder
            return
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    for entry in sorted(found, key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _below(entry.path, (*above, identity))
        elif is_image(entry.name):
            yield entry.path
