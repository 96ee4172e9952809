"""Read the images and targets of a data set one after another, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from headkit.adapters.errors import DataError, first_line

from .dataset import ImageDataset


def iterate_samples(dataset: ImageDataset) -> Iterator[tuple[Any, Any]]:
    """Yield what an ``ImageReader`` takes, and the target, of each image.

    In place of an image that the reader cannot give, yield a ``DataError``.
    """
    if dataset.paths is not None and dataset.targets is not None:
        yield from zip(dataset.paths, dataset.targets, strict=True)
    elif dataset.reader is not None:
        for index in range(len(dataset.reader)):
            try:
                source, target = dataset.reader[index]
            except Exception as error:
                # A data set of the user's own may raise errors of any type.
                source, target = DataError(f"image {index} ({first_line(error)})"), -1
            yield source, target if dataset.targets is None else dataset.targets[index]
    else:
        yield from dataset.stream
