"""Decode images into what the backbone sees, each with its identity."""

from __future__ import annotations

import ctypes
import hashlib
import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.images import open_image

from .cache import PIXEL_DIGEST
from .file_hashes import DIGEST, Digests, digest_of
from .runtime import Pixels
from .transform import Transform

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Batch:
    """Decoded images: pixels uint8 ``[n, channels, height, width]``, identities, what is valid."""

    pixels: Pixels
    digests: Digests
    valid: np.ndarray[Any, np.dtype[np.bool_]]

    @property
    def pixel_digests(self) -> np.ndarray[Any, np.dtype[np.bytes_]]:
        """Of what the backbone sees: equal for two files with the same picture in them."""
        found = [hashlib.blake2b(image, digest_size=16).digest() for image in self.pixels]
        return np.array(found, PIXEL_DIGEST)


@dataclass(frozen=True)
class Sample:
    """One image: uint8 ``[channels, height, width]``, its identity, and its target if it streams.

    Without pixels it cannot be decoded, without an identity not even read.
    """

    pixels: torch.Tensor | None
    digest: bytes
    target: Any = None


class Files(Dataset[Sample]):
    """Image files, decoded where they are asked for: in a worker process."""

    def __init__(self, paths: Sequence[str], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        try:
            content = Path(self.paths[index]).read_bytes()
        except OSError:
            return Sample(None, b"")
        # Of the very bytes that are decoded: the file may have changed since it was looked up.
        digest = digest_of(content)
        return Sample(_decoded(io.BytesIO(content), self.transform, digest), digest)


class _Read(Dataset[Sample]):
    def __init__(self, reader: Any, transform: Transform) -> None:
        self.reader, self.transform = reader, transform

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        try:
            image, target = self.reader[index]
        except OSError:
            return Sample(None, b"", -1)
        return _from_picture(image, target, self.transform)


def streamed(
    source: ImageDataset, transform: Transform, batch_size: int, workers: int
) -> Iterator[Sample]:
    """Decode what comes without files: in worker processes where there is random access."""
    if source.reader is None:
        for image, target in source.stream:
            yield _from_picture(image, target, transform)
        return
    loader: DataLoader[Any] = DataLoader(
        _Read(source.reader, transform),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=end_with_parent,
    )
    for samples in loader:
        yield from samples


def _from_picture(file: Any, target: Any, transform: Transform) -> Sample:
    """What comes without a file is known by its pixels before they are resized."""
    try:
        image = open_image(file)
    except Exception:
        return Sample(None, b"", target)
    digest = digest_of(f"{image.width}x{image.height}".encode() + image.tobytes())
    return Sample(_decoded(image, transform, digest), digest, target)


def _decoded(file: io.BytesIO | Image.Image, transform: Transform, digest: bytes) -> Any:
    # The caller names and counts what cannot be read.
    try:
        return transform(open_image(file), digest)
    except Exception:
        return None


def end_with_parent(_worker: int) -> None:
    """Have the system end this worker when the thread that started it is gone, killed or not.

    A worker that waits for room in its queue does not look after its parent. Only Linux can do this
    (prctl(2)); elsewhere, such a worker ends when it next looks.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library without prctl
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples; what could not be decoded is black and not valid."""
    shape = next((s.pixels.shape for s in samples if s.pixels is not None), (3, 1, 1))
    pixels = np.zeros((len(samples), *shape), np.uint8)
    for number, sample in enumerate(samples):
        if sample.pixels is not None:
            pixels[number] = sample.pixels.numpy()
    valid = np.array([sample.pixels is not None for sample in samples])
    return Batch(pixels, as_digests(samples), valid)


def as_digests(samples: Sequence[Sample]) -> Digests:
    """Return the identities of samples, ``[N]``."""
    return np.array([sample.digest for sample in samples], DIGEST)
