"""Decode images to the pixels that the backbone sees, each with a digest of its content."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import DataError
from headkit.adapters.images.open import read_image_file

from .cache import PIXEL_DIGEST
from .file_hashes import DIGEST, Digests, hash_content
from .runtime import Pixels
from .transform import Transform

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Batch:
    """Decoded images.

    Attributes:
        pixels: uint8 ``[n, channels, height, width]``.
        digests: Digest of each image's content, ``[n]``.
        valid: ``[n]``, True for each image that could be decoded.
    """

    pixels: Pixels
    digests: Digests
    valid: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def pixel_digests(self) -> np.ndarray[Any, np.dtype[np.bytes_]]:
        """Digests of what the backbone sees, ``[n]``: equal for two files with the same picture."""
        digests = [hashlib.blake2b(image, digest_size=16).digest() for image in self.pixels]
        return np.array(digests, PIXEL_DIGEST)


@dataclass(frozen=True)
class Sample:
    """One image.

    Attributes:
        pixels: uint8 ``[channels, height, width]``; None if the image cannot be decoded.
        digest: Digest of the image's content; empty if the image cannot be read.
        target: The image's target if it comes from a reader or a stream; else None.
    """

    pixels: torch.Tensor | None
    digest: bytes
    target: Any = None


class ImageFiles(Dataset[Sample]):
    """Image files; the worker process that asks for one decodes it."""

    def __init__(self, paths: Sequence[str], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        try:
            content = read_image_file(self.paths[index])
        except DataError:
            return Sample(None, b"")
        # Hash the bytes that are decoded: the file may have changed since its last hash.
        digest = hash_content(content)
        return Sample(_decode(content, self.transform, digest), digest)


class _ReaderImages(Dataset[Sample]):
    def __init__(self, reader: Any, transform: Transform, cached: Container[bytes]) -> None:
        self.reader, self.transform, self.cached = reader, transform, cached

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, target = self.reader[index]
        except Exception:
            # A data set of the user's own may raise errors of any type; the caller counts them.
            return Sample(None, b"", -1)
        return _sample_from_image(image, target, self.transform, self.cached)


def decode_stream(
    dataset: ImageDataset,
    transform: Transform,
    batch_size: int,
    workers: int,
    cached: Container[bytes] = (),
) -> Iterator[Sample]:
    """Decode the images of a reader or a stream. A reader's images are decoded by the workers.

    An image whose digest is in ``cached`` is not transformed: its sample has no pixels.
    """
    if dataset.reader is None:
        for image, target in dataset.stream:
            yield _sample_from_image(image, target, transform, cached)
        return
    loader: DataLoader[Any] = DataLoader(
        _ReaderImages(dataset.reader, transform, cached),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=end_with_parent,
    )
    for samples in loader:
        yield from samples


def _sample_from_image(
    source: Any, target: Any, transform: Transform, cached: Container[bytes]
) -> Sample:
    """Decode an image that a reader or a stream gives.

    The digest of a path or of encoded bytes is that of ``ImageFiles``; otherwise it is of the
    image's pixels before they are resized.
    """
    image: bytes | Image.Image
    try:
        if isinstance(source, str | os.PathLike | bytes):
            image = source if isinstance(source, bytes) else read_image_file(Path(source))
            digest = hash_content(image)
        else:
            image = transform.read(source)
            digest = hash_content(f"{image.width}x{image.height}".encode() + image.tobytes())
    except Exception:
        return Sample(None, b"", target)
    if digest in cached:
        return Sample(None, digest, target)
    return Sample(_decode(image, transform, digest), digest, target)


def _decode(source: bytes | Image.Image, transform: Transform, digest: bytes) -> Any:
    """Return pixels, or None if the image cannot be decoded: the caller counts and reports it."""
    try:
        return transform(transform.read(source), digest)
    except Exception:
        return None


def end_with_parent(_worker: int) -> None:
    """Ask the system to end this worker when the thread that started it ends, even if killed.

    A worker that waits for room in its queue does not check whether its parent still runs. Only
    Linux can end it at once (prctl(2)). Elsewhere, the worker ends at its next check.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library without prctl
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples. An image that could not be decoded is black and not valid."""
    shape = next((s.pixels.shape for s in samples if s.pixels is not None), (3, 1, 1))
    pixels = np.zeros((len(samples), *shape), np.uint8)
    for number, sample in enumerate(samples):
        if sample.pixels is not None:
            pixels[number] = sample.pixels.numpy()
    valid = np.array([sample.pixels is not None for sample in samples])
    return Batch(pixels, stack_digests(samples), valid)


def stack_digests(samples: Sequence[Sample]) -> Digests:
    """Return the digests of samples, ``[N]``."""
    return np.array([sample.digest for sample in samples], DIGEST)
