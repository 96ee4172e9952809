"""Read images one at a time, and gather neighbours into batches for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from headkit.adapters.errors import DataError
from headkit.adapters.images.open import ImageLike, ImageReader
from headkit.adapters.images.pixel_rule import PixelRule
from headkit.adapters.images.pixels import UnreadableImage
from headkit.adapters.images.sources import ONE_IMAGE, iterate_images

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ReadImage:
    """An image that a model can take, or the reason why it cannot be read.

    Attributes:
        name: Path of the image, or its number.
        pixels: What the model takes, by the rule of the pixels; empty if there is an error.
        error: The error, if the image cannot be read.
    """

    name: str
    pixels: Mapping[PixelRule, Array]
    error: DataError | None = None

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the pixels."""
        return tuple(pixels.shape for pixels in self.pixels.values())

    @property
    def reason(self) -> str | None:
        """What is wrong with the image, without its name; None if nothing is."""
        if self.error is None:
            return None
        if isinstance(self.error, UnreadableImage):
            return self.error.reason
        return str(self.error).removeprefix(f"{self.name}: ")


def read_images(
    images: ImageLike | Iterable[ImageLike],
    readers: Sequence[ImageReader],
    prepare: Callable[[Image.Image], Array],
) -> Iterator[ReadImage]:
    """Read images when they are needed; a generator is never read ahead.

    Args:
        images: See ``iterate_images``.
        readers: A reader for each rule by which images become pixels.
        prepare: Function that returns what the model takes for a decoded image.

    Raises:
        DataError: See ``iterate_images``. An image that cannot be read raises nothing.
    """
    for name, source in iterate_images(images):
        try:
            # A file can be read once, but each rule needs its content.
            content = _content(source) if len(readers) > 1 else source
            yield ReadImage(name, {read.rule: prepare(read(content)) for read in readers})
        except DataError as error:
            yield ReadImage(name, {}, _with_name(error, name))


def gather(images: Iterable[ReadImage], batch_size: int) -> Iterator[list[ReadImage]]:
    """Yield lists of neighbours whose pixels have the same shapes, which one tensor can hold.

    An image that cannot be read has no pixels and fits every list.
    """
    some: list[ReadImage] = []
    shapes: tuple[tuple[int, ...], ...] = ()
    for image in images:
        if shapes and image.pixels and image.shapes != shapes:
            yield some
            some, shapes = [], ()
        some.append(image)
        shapes = shapes or image.shapes
        if len(some) == batch_size:  # now, as the next image may take long to come
            yield some
            some, shapes = [], ()
    if some:
        yield some


def _with_name(error: DataError, name: str) -> DataError:
    """Return the error with the name of the image, which only errors about a path have."""
    if name == ONE_IMAGE:
        return error
    if not isinstance(error, UnreadableImage):
        return type(error)(f"{name}: {error}")
    return UnreadableImage(name, error.reason) if error.name == ONE_IMAGE else error


def batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield ``values`` in lists of ``size``; the last list may be shorter."""
    values = iter(values)
    while some := list(islice(values, size)):
        yield some


def _content(source: ImageLike) -> ImageLike:
    if not hasattr(source, "read") or isinstance(source, Image.Image):
        return source
    try:
        return bytes(source.read())
    except (OSError, ValueError, TypeError) as error:
        raise UnreadableImage(ONE_IMAGE, str(error)) from error


def check_at_least_1(**numbers: int) -> None:
    """Raise a ``ValueError`` that names the first number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1")
