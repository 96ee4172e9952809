"""Features on disk, found again by the content of the image that they come from.

A cache is a folder of shards, safetensors files that are written once and whole. A shard holds, a
row per image, ``digest`` uint8 ``[n, 32]`` (identity.py), ``pixels`` uint8 ``[n, 16]`` (a digest of
what the backbone sees), ``valid`` uint8 ``[n]`` and ``features``, ``features_1``, … float32
``[n, …]``. All that the numbers depend on but the image is in the folder's name, by its hash.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headkit.adapters.files import write_atomically

from .file_hashes import DIGEST, Digests

logger = logging.getLogger("headkit")

FORMAT = 1
PIXEL_DIGEST = np.dtype("S16")
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Found:
    """Where the features of some images lie.

    Attributes:
        shard: number of the shard, ``[N]`` int64; -1 where the cache lacks the image.
        row: in the shard, ``[N]`` int64.
    """

    shard: np.ndarray[Any, np.dtype[np.int64]]
    row: np.ndarray[Any, np.dtype[np.int64]]

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, chosen: Any) -> Found:
        return Found(self.shard[chosen], self.row[chosen])

    @property
    def missing(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Mask of the images that the cache lacks."""
        return self.shard < 0


class FeatureCache:
    """The features of one backbone, as one runtime gives them, under one transform.

    Processes may share it: a shard is named after the images in it and moved into place whole.

    Args:
        root: the folder of all caches.
        key: all that the features depend on but the image, as JSON values.
    """

    def __init__(self, root: Path, key: Mapping[str, Any]) -> None:
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"))
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.folder = root / "features" / f"{key['architecture']}-{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        described = self.folder / "key.json"
        if not described.is_file():
            write_atomically(described, text.encode())
        self._shards: list[Path] = []
        self._digests: list[Digests] = []
        self._pixels: list[np.ndarray[Any, Any]] = []
        self._valid: list[np.ndarray[Any, Any]] = []
        for path in sorted(self.folder.glob(f"shard-*{_SUFFIX}")):
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with safe_open(path, framework="numpy") as shard:
                digest, pixels, valid = map(shard.get_tensor, ("digest", "pixels", "valid"))
        except (SafetensorError, OSError) as error:
            # Full disks and pulled plugs: what a shard holds can be computed again.
            logger.warning("removed the damaged shard %s (%s)", path, error)
            path.unlink(missing_ok=True)
            return
        self._shards.append(path)
        self._digests.append(np.ascontiguousarray(digest).view(DIGEST).reshape(-1))
        self._pixels.append(np.ascontiguousarray(pixels).view(PIXEL_DIGEST).reshape(-1))
        self._valid.append(valid.astype(np.bool_))
        vars(self).pop("_order", None)

    @cached_property
    def _order(self) -> tuple[Digests, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """All digests in order, with their shards and rows."""
        digests = np.concatenate([np.zeros(0, DIGEST), *self._digests])
        sizes = [len(digest) for digest in self._digests]
        shard = np.repeat(np.arange(len(sizes)), sizes)
        row = np.concatenate([np.arange(0), *map(np.arange, sizes)])
        order = np.argsort(digests, kind="stable")
        return digests[order], shard[order], row[order]

    def find(self, digests: Digests) -> Found:
        """Look images up."""
        known, shard, row = self._order
        if not len(known):
            return Found(np.full(len(digests), -1), np.full(len(digests), -1))
        at = np.minimum(np.searchsorted(known, digests), len(known) - 1)
        here = (known[at] == digests) & (digests != b"")
        return Found(np.where(here, shard[at], -1), np.where(here, row[at], -1))

    def valid(self, found: Found) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Tell which images could be decoded, ``[N]``. All have to be found."""
        taken: np.ndarray[Any, np.dtype[np.bool_]] = _take(self._valid, found, np.bool_)
        return taken

    def pixels(self, found: Found) -> np.ndarray[Any, np.dtype[np.bytes_]]:
        """Return digests of what the backbone saw, ``[N]``: equal pixels, equal features."""
        taken: np.ndarray[Any, np.dtype[np.bytes_]] = _take(self._pixels, found, PIXEL_DIGEST)
        return taken

    def add(
        self,
        digests: Digests,
        pixels: np.ndarray[Any, Any],
        valid: np.ndarray[Any, Any],
        branches: Sequence[np.ndarray[Any, Any]],
    ) -> None:
        """Write a shard and have it on the disk before going on."""
        tensors = {
            "digest": _bytes(digests, DIGEST),
            "pixels": _bytes(pixels, PIXEL_DIGEST),
            "valid": valid.astype(np.uint8),
            **{_name(number): branch for number, branch in enumerate(branches)},
        }
        path = self.folder / f"shard-{hashlib.sha256(digests.tobytes()).hexdigest()[:24]}{_SUFFIX}"
        write_atomically(path, safetensors.numpy.save(tensors))
        self._read(path)

    def refresh(self) -> None:
        """Take in the shards that other processes have written."""
        for path in sorted(set(self.folder.glob(f"shard-*{_SUFFIX}")) - set(self._shards)):
            self._read(path)

    def shapes(self, found: Found) -> list[tuple[int, ...]]:
        """Return the shape of each branch for one image."""
        with safe_open(self._shards[found.shard[0]], framework="numpy") as shard:
            number = sum(name.startswith("features") for name in shard.keys())  # noqa: SIM118
            slices = [shard.get_slice(_name(branch)) for branch in range(number)]
            return [tuple(part.get_shape()[1:]) for part in slices]

    def load(self, found: Found) -> tuple[Tensor, ...]:
        """Return the features of images, ``[N, …]`` per branch, in memory."""
        shapes = self.shapes(found)
        loaded = tuple(torch.empty(len(found), *shape) for shape in shapes)
        for number in np.unique(found.shard):
            mask = found.shard == number
            with safe_open(self._shards[number], framework="pt") as shard:
                for branch, into in enumerate(loaded):
                    rows = torch.from_numpy(found.row[mask])
                    into[torch.from_numpy(mask)] = shard.get_tensor(_name(branch))[rows]
        return loaded


class CachedRows:
    """Features of images as a matrix that stays on the disk, read a shard at a time.

    Args:
        parts: caches and where the images lie in them; the same image in several views has a row
            in each.

    Attributes:
        order: ``[N]``, which image of all parts in turn each row is of: shard by shard.
        shapes: of each branch for one image.
        shape: number of rows, and of features of all branches together.
    """

    def __init__(self, parts: Sequence[tuple[FeatureCache, Found]]) -> None:
        self._parts, orders, before = [], [], 0
        for cache, found in parts:
            order = np.lexsort((found.row, found.shard))
            self._parts.append((cache, found[order]))
            orders.append(before + order)
            before += len(found)
        self.order = np.concatenate(orders)
        cache, found = self._parts[0]
        self.shapes = cache.shapes(found)
        self.shape = (before, sum(int(np.prod(shape)) for shape in self.shapes))

    def blocks(self) -> Iterator[Tensor]:
        """Yield float32 ``[n, num_features]``, the same blocks in the same order each time."""
        for cache, found in self._parts:
            starts = [*np.unique(found.shard, return_index=True)[1], len(found)]
            for start, end in pairwise(starts):
                branches = cache.load(found[start:end])
                yield torch.cat([branch.flatten(1) for branch in branches], 1)


def _take(arrays: Sequence[Any], found: Found, dtype: Any) -> Any:
    """Gather what the shards hold in memory for each image."""
    taken = np.zeros(len(found), dtype)
    for number in np.unique(found.shard):
        mask = found.shard == number
        taken[mask] = arrays[number][found.row[mask]]
    return taken


def _name(branch: int) -> str:
    return f"features_{branch}" if branch else "features"


def _bytes(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(values, dtype).view(np.uint8).reshape(len(values), -1)
