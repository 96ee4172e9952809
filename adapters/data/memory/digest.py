"""Name data in memory by their content, so that an interrupted comparison knows them again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from headkit.adapters.data.dataset import ImageDataset


def digest_data(dataset: ImageDataset) -> str:
    """Return the SHA-256 of everything that a data set holds: images or paths, targets, labels.

    Every image that is not a path is read. Files are named by their paths, and streams by their
    names.
    """
    digest = hashlib.sha256()
    for part in _parts(dataset):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _parts(dataset: ImageDataset) -> Iterator[bytes]:
    yield repr((dataset.task, dataset.label_names)).encode()
    if dataset.targets is not None:
        yield from _array(dataset.targets)
    if dataset.paths is not None:
        yield from (path.encode(errors="surrogatepass") for path in dataset.paths)
    elif dataset.features is not None:
        yield from _array(dataset.features)
        for name, vectors in dataset.levels.items():
            yield name.encode()
            yield from _array(vectors)
    elif dataset.reader is not None and dataset.targets is not None:
        for number in range(len(dataset.reader)):
            yield from _image(dataset.reader, number)
    else:
        yield dataset.name.encode()


def _image(reader: Any, number: int) -> Iterator[bytes]:
    try:
        image, _ = reader[number]
    except Exception:
        # A data set of the user's own may raise errors of any type; fit counts such images.
        yield b"unreadable"
        return
    if isinstance(image, bytes | bytearray):
        yield bytes(image)
    elif hasattr(image, "tobytes") and hasattr(image, "mode"):  # a Pillow image
        yield repr((image.size, image.mode)).encode()
        yield image.tobytes()
    elif hasattr(image, "shape"):
        yield from _array(image.detach().cpu().numpy() if hasattr(image, "detach") else image)
    else:
        yield str(image).encode(errors="surrogatepass")


def _array(array: np.ndarray[Any, Any]) -> Iterator[bytes]:
    yield repr((str(array.dtype), array.shape)).encode()
    for start in range(0, max(len(array), 1), 8192):
        yield np.ascontiguousarray(array[start : start + 8192]).tobytes()
