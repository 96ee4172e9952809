"""Store features on disk and look them up by the content of their image.

A cache is a folder of shards: safetensors files, each of which is written once and as a whole. A
shard has one row per image in each of its tensors: ``digest`` uint8 ``[n, 32]`` (see
``file_hashes``), ``pixels`` uint8 ``[n, 16]`` (a digest of what the backbone sees), ``valid`` uint8
``[n]``, and ``features``, ``features_1``, … float32 ``[n, …]``, one per branch. The folder's name
has a hash of everything but the image that the features depend on. The name of a shard ends in a
checksum of its content, so features are never taken from a damaged shard.
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
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headkit.adapters.errors import OutputError
from headkit.adapters.files import is_file, make_folder, reason_of, write_atomically
from headkit.adapters.tensor_bytes import to_safetensors

from .file_hashes import DIGEST, Digests
from .lock import KEY_FILE, InUse, touch

logger = logging.getLogger("headkit")

FORMAT = 1
PIXEL_DIGEST = np.dtype("S16")
_SUFFIX = ".safetensors"
_ATTEMPTS = 20


@dataclass(frozen=True)
class Locations:
    """Where a cache has the features of ``N`` images.

    Attributes:
        shard: Number of each image's shard, ``[N]`` int64; -1 if the cache lacks the image.
        row: Row of each image in its shard, ``[N]`` int64.
    """

    shard: np.ndarray[Any, np.dtype[np.int64]]
    row: np.ndarray[Any, np.dtype[np.int64]]

    def __len__(self) -> int:
        return len(self.shard)

    def __getitem__(self, chosen: Any) -> Locations:
        return Locations(self.shard[chosen], self.row[chosen])

    @property
    def missing(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """``[N]``, True for each image that the cache lacks."""
        return self.shard < 0


class FeatureRows(Protocol):
    """Something that has features of images, a row for each."""

    def shapes(self, locations: Locations, /) -> list[tuple[int, ...]]:
        """Return the shape of one image's features in each branch."""
        ...

    def load(self, locations: Locations, /) -> tuple[Tensor, ...]:
        """Read features into memory: float32 ``[N, …]`` per branch."""
        ...


class FeatureCache:
    """A cache of the features that one backbone computes on one runtime under one transform.

    Several processes may use it at once: a shard is named after its images and moved into place
    when it is complete.

    Args:
        root: Folder of all caches.
        key: Everything but the image that the features depend on, as JSON values.
        create: Make the folder of the cache, and keep others from removing files in it until
            ``release``. False only reads what is there.
    """

    def __init__(self, root: Path, key: Mapping[str, Any], *, create: bool = True) -> None:
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True, separators=(",", ":"))
        name = hashlib.sha256(text.encode()).hexdigest()[:24]
        self.folder = root / "features" / f"{key['architecture']}-{name}"
        self._in_use = _use(self.folder, text.encode()) if create else None
        self._touched: set[int] = set()
        self._shards: list[Path] = []
        self._digests: list[Digests] = []
        self._pixels: list[np.ndarray[Any, Any]] = []
        self._valid: list[np.ndarray[Any, Any]] = []
        self._checked: set[int] = set()
        self._shapes: list[tuple[int, ...]] = []
        for path in sorted(self.folder.glob(f"shard-*{_SUFFIX}")):
            self._read(path)

    @property
    def num_images(self) -> int:
        """Number of images in the cache."""
        return sum(map(len, self._digests))

    def release(self) -> None:
        """Let other processes remove features when the cache gets too large."""
        if self._in_use is not None:
            self._in_use.release()

    def _read(self, path: Path) -> None:
        try:
            path.open("rb").close()  # safetensors would call every reason "no such file"
            with safe_open(path, framework="numpy") as shard:
                shapes = _check_tensors(shard)
                digest, pixels, valid = map(shard.get_tensor, ("digest", "pixels", "valid"))
            digests = np.ascontiguousarray(digest).view(DIGEST).reshape(-1)
            pixel_digests = np.ascontiguousarray(pixels).view(PIXEL_DIGEST).reshape(-1)
            if self._shapes not in ([], shapes):
                raise ValueError(f"its features have the shapes {shapes}, expected {self._shapes}")
        except FileNotFoundError:
            return  # another process has just removed it
        except OSError as error:  # it may be intact, and another user's
            logger.warning("cannot read the shard %s: %s", path, reason_of(error))
            return
        except (SafetensorError, ValueError) as error:
            # A power cut can damage a shard. Its features can be computed again.
            _remove(path, str(error))
            return
        self._shapes = shapes
        self._shards.append(path)
        self._digests.append(digests)
        self._pixels.append(pixel_digests)
        self._valid.append(valid.astype(np.bool_))
        vars(self).pop("_order", None)

    @cached_property
    def _order(self) -> tuple[Digests, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """All digests in ascending order, with their shards and rows."""
        digests = np.concatenate([np.zeros(0, DIGEST), *self._digests])
        sizes = [len(digest) for digest in self._digests]
        shard = np.repeat(np.arange(len(sizes)), sizes)
        row = np.concatenate([np.arange(0), *map(np.arange, sizes)])
        order = np.argsort(digests, kind="stable")
        return digests[order], shard[order], row[order]

    def find(self, digests: Digests, *, check: bool = True) -> Locations:
        """Return where the cache has the images with these digests.

        Each shard is compared with its checksum before its features are used for the first time. If
        it is damaged, it is removed, and its images count as missing. Whoever does not use the
        features needs no ``check``.
        """
        while True:
            locations = self._find(digests)
            if not check:
                return locations
            unchecked = set(locations.shard[~locations.missing].tolist()) - self._checked
            if all(self._check(number) for number in sorted(unchecked)):
                return locations

    def _check(self, number: int) -> bool:
        """Return True if a shard is as it was written; otherwise, forget it."""
        self._checked.add(number)
        path = self._shards[number]
        expected = path.stem.rpartition("-")[2]
        if path.stem.count("-") < 2:  # headkit 0.1 wrote no checksums
            return True
        try:
            if _checksum(path.read_bytes()) == expected:
                return True
            _remove(path, "its checksum does not match")
        except OSError as error:  # another process has removed it, or the disk is damaged
            logger.warning("cannot read the shard %s: %s", path, reason_of(error))
        self._shards[number] = Path()  # the same shard may be written again
        self._digests[number] = np.zeros(0, DIGEST)
        self._pixels[number] = np.zeros(0, PIXEL_DIGEST)
        self._valid[number] = np.zeros(0, np.bool_)
        vars(self).pop("_order", None)
        return False

    def _find(self, digests: Digests) -> Locations:
        known, shard, row = self._order
        if not len(known):
            return Locations(np.full(len(digests), -1), np.full(len(digests), -1))
        at = np.minimum(np.searchsorted(known, digests), len(known) - 1)
        present = (known[at] == digests) & (digests != b"")
        return Locations(np.where(present, shard[at], -1), np.where(present, row[at], -1))

    def find_pixels(self, digests: np.ndarray[Any, Any]) -> Locations:
        """Return where the cache has images that look like these, see ``pixel_digests``."""
        known = np.concatenate([np.zeros(0, PIXEL_DIGEST), *self._pixels])
        files = np.concatenate([np.zeros(0, DIGEST), *self._digests])
        order = np.argsort(known, kind="stable")
        if not len(known):
            return self.find(np.zeros(len(digests), DIGEST))
        at = order[np.minimum(np.searchsorted(known[order], digests), len(known) - 1)]
        return self.find(np.where(known[at] == digests, files[at], np.zeros(1, DIGEST)))

    def __contains__(self, digest: object) -> bool:
        """Return True if the cache has the image with this digest."""
        return not self.find(np.array([digest], DIGEST)).missing[0]

    def is_valid(self, locations: Locations) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return ``[N]``, True for each decodable image. The cache must have all of them."""
        valid: np.ndarray[Any, np.dtype[np.bool_]] = _gather(self._valid, locations, np.bool_)
        return valid

    def pixel_digests(self, locations: Locations) -> np.ndarray[Any, np.dtype[np.bytes_]]:
        """Return digests of what the backbone saw, ``[N]``: equal digests mean equal features."""
        digests: np.ndarray[Any, np.dtype[np.bytes_]]
        digests = _gather(self._pixels, locations, PIXEL_DIGEST)
        return digests

    def add(
        self,
        digests: Digests,
        pixels: np.ndarray[Any, Any],
        valid: np.ndarray[Any, Any],
        branches: Sequence[np.ndarray[Any, Any]],
    ) -> None:
        """Write a shard, and return when the disk has it."""
        tensors = {
            "digest": _as_uint8(digests, DIGEST),
            "pixels": _as_uint8(pixels, PIXEL_DIGEST),
            "valid": valid.astype(np.uint8),
            **{_tensor_name(number): branch for number, branch in enumerate(branches)},
        }
        content = to_safetensors(tensors)
        images = hashlib.sha256(digests.tobytes()).hexdigest()[:24]
        path = self.folder / f"shard-{images}-{_checksum(content)}{_SUFFIX}"
        write_atomically(path, content)
        self._read(path)
        self._checked.add(len(self._shards) - 1)

    def refresh(self) -> None:
        """Read the shards that other processes have written since."""
        for path in sorted(set(self.folder.glob(f"shard-*{_SUFFIX}")) - set(self._shards)):
            self._read(path)

    def shapes(self, locations: Locations) -> list[tuple[int, ...]]:
        """Return the shape of one image's features in each branch."""
        with safe_open(self._shards[locations.shard[0]], framework="numpy") as shard:
            number = sum(name.startswith("features") for name in shard.keys())  # noqa: SIM118
            slices = [shard.get_slice(_tensor_name(branch)) for branch in range(number)]
            return [tuple(part.get_shape()[1:]) for part in slices]

    def load(self, locations: Locations) -> tuple[Tensor, ...]:
        """Read features into memory: float32 ``[N, …]`` per branch."""
        shapes = self.shapes(locations)
        features = tuple(torch.empty(len(locations), *shape) for shape in shapes)
        for number in np.unique(locations.shard):
            mask = locations.shard == number
            if number not in self._touched:
                self._touched.add(number)
                touch(self._shards[number])
            with safe_open(self._shards[number], framework="pt") as shard:
                for branch, into in enumerate(features):
                    rows = torch.from_numpy(locations.row[mask])
                    into[torch.from_numpy(mask)] = shard.get_tensor(_tensor_name(branch))[rows]
        return features


def _check_tensors(shard: Any) -> list[tuple[int, ...]]:
    """Check names, types and shapes of an open shard; return the shape of one image's features.

    Raises:
        ValueError: It is not a shard.
    """
    slices = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118
    found = {name: (one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
    count = found["valid"][1][0] if found.get("valid", ("", ()))[1] else 0
    branches = [_tensor_name(branch) for branch in range(len(found) - 3)]
    expected = {
        "digest": ("U8", (count, DIGEST.itemsize)),
        "pixels": ("U8", (count, PIXEL_DIGEST.itemsize)),
        "valid": ("U8", (count,)),
        **{name: ("F32", (count, *found.get(name, ("", ()))[1][1:])) for name in branches},
    }
    if found != expected or not count or not branches:
        raise ValueError(f"its tensors are {found!r:.300}, expected {expected!r:.300}")
    return [found[name][1][1:] for name in branches]


def _use(folder: Path, key: bytes) -> InUse:
    """Mark a folder as in use; make it if it is missing.

    Another process may remove the folder at any moment before it is marked.
    """
    for attempt in range(_ATTEMPTS):
        try:
            make_folder(folder)
            if not is_file(folder / KEY_FILE):
                write_atomically(folder / KEY_FILE, key)
            return InUse(folder)
        except (FileNotFoundError, OutputError):
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


class CachedRows:
    """A matrix of features that stays on the disk and is read one shard at a time.

    Args:
        parts: Caches, each with the locations of images in it. An image that is in several parts,
            such as in several views, has one row per part.

    Attributes:
        order: ``[N]``, the image of each row. Images are numbered through all parts; rows are in
            the order of the shards.
        shapes: Shape of one image's features in each branch.
        shape: Number of rows, and number of features in all branches together.
    """

    def __init__(self, parts: Sequence[tuple[FeatureRows, Locations]]) -> None:
        self._parts, orders, before = [], [], 0
        for cache, locations in parts:
            order = np.lexsort((locations.row, locations.shard))
            self._parts.append((cache, locations[order]))
            orders.append(before + order)
            before += len(locations)
        self.order = np.concatenate(orders)
        cache, locations = self._parts[0]
        self.shapes = cache.shapes(locations)
        self.shape = (before, sum(int(np.prod(shape)) for shape in self.shapes))

    def blocks(self) -> Iterator[Tensor]:
        """Yield float32 ``[n, num_features]``, the same blocks in the same order each time."""
        for cache, locations in self._parts:
            starts = [*np.unique(locations.shard, return_index=True)[1], len(locations)]
            for start, end in pairwise(starts):
                branches = cache.load(locations[start:end])
                yield torch.cat([branch.flatten(1) for branch in branches], 1)


def _gather(arrays: Sequence[Any], locations: Locations, dtype: Any) -> Any:
    """Return the value of each image, ``[N]``, from one array per shard."""
    values = np.zeros(len(locations), dtype)
    for number in np.unique(locations.shard):
        mask = locations.shard == number
        values[mask] = arrays[number][locations.row[mask]]
    return values


def _remove(shard: Path, reason: str) -> None:
    """Remove a damaged shard; its features can be computed again."""
    try:
        shard.unlink(missing_ok=True)
        logger.warning("removed the damaged shard %s: %s", shard, reason)
    except OSError as error:
        logger.warning(
            "cannot remove the damaged shard %s (%s): %s", shard, reason, reason_of(error)
        )


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:24]


def _tensor_name(branch: int) -> str:
    return f"features_{branch}" if branch else "features"


def _as_uint8(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(values, dtype).view(np.uint8).reshape(len(values), -1)
