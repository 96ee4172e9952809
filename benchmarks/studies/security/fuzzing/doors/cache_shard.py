"""Shards of cached features: read a folder of the cache as ``fit`` does."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from random import Random

import numpy as np

from headkit.adapters.errors import HeadkitError
from headkit.adapters.features.cache import PIXEL_DIGEST, FeatureCache
from headkit.adapters.features.file_hashes import DIGEST

from ..mutations import parts
from ..mutations.tensor_files import edit_tensor_file
from ..seeds import SeedFiles
from .door import Door

_KEY = {"architecture": "test_resnet", "fingerprint": "0" * 64}
_DIGESTS = np.array([hashlib.sha256(bytes([n])).digest() for n in range(4)], DIGEST)
_SHAPES: tuple[list[tuple[int, ...]], ...] = ([(6,)], [(6,), (3,)], [(4, 2, 2)])
_PIXELS = np.array([bytes([n]) * 16 for n in range(4)], PIXEL_DIGEST)


class Refused(HeadkitError):
    """The cache removed the shard, or knows none of its images."""


def open_door(_seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    generator = np.random.default_rng(0)
    valid = []
    for number, shapes in enumerate(_SHAPES):
        branches = [generator.normal(size=(4, *shape)).astype(np.float32) for shape in shapes]
        cache = FeatureCache(folder / f"valid-{number}", _KEY)
        cache.add(_DIGESTS, _PIXELS, np.ones(4, np.bool_), branches)
        (path,) = cache.folder.glob("shard-*")
        valid.append(parts.join({"name": path.name.encode(), "shard": path.read_bytes()}))
        cache.release()
    root = folder / "cache"

    def enter(content: bytes) -> None:
        given = parts.split(content)
        shutil.rmtree(root, ignore_errors=True)
        where = FeatureCache(root, _KEY, create=False).folder
        where.mkdir(parents=True)
        (where / given["name"].decode()).write_bytes(given["shard"])
        cache = FeatureCache(root, _KEY, create=False)
        locations = cache.find(_DIGESTS)
        known = locations[~locations.missing]
        if not len(known):
            raise Refused("the cache has no features")
        cache.is_valid(known), cache.pixel_digests(known)
        cache.load(known)

    return Door(valid, _change, enter)


def _change(content: bytes, random: Random) -> bytes:
    """Change a shard; mostly, its name gets the checksum of the new content."""
    given = parts.split(content)
    given["shard"] = edit_tensor_file(given["shard"], random)
    checksum = hashlib.sha256(given["shard"]).hexdigest()[:24]
    images = given["name"].decode().split("-")[1]
    choice = random.random()
    if choice < 0.6:
        given["name"] = f"shard-{images}-{checksum}.safetensors".encode()
    elif choice < 0.8:  # headkit 0.1 wrote no checksums
        given["name"] = f"shard-{images}.safetensors".encode()
    return parts.join(given)
