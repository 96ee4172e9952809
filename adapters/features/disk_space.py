"""Show how much of the disk the cache takes, clear it, and keep it below a limit.

Everything in the cache can be computed again. What was used longest ago is removed first.
A folder that some process uses is left alone, see ``lock``. This module does not import torch.
"""

from __future__ import annotations

import json
import logging
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from headkit.adapters.errors import OutputError
from headkit.adapters.files import (
    cache_folder,
    is_file,
    is_folder,
    reason_of,
    write_atomically,
    writing,
)
from headkit.adapters.temporary import remove_abandoned

from .file_hashes import INDEX_NAME, clear_index
from .lock import KEY_FILE, alone

logger = logging.getLogger("headkit")

LIMIT_FILE = "limit.json"
FEATURES, BACKBONES, HEADS, CHECKPOINTS = "features", "backbones", "heads", "checkpoints"
_PARTS = ("shard-*", "predictions-*")
"""Files in a folder of features."""
SETTLED = 600
"""Seconds after its last use in which such a file stays: a process may be using it."""


@dataclass(frozen=True)
class CacheEntry:
    """The features of one backbone on one runtime under one transform; or another file.

    Attributes:
        backbone: timm entry point.
        kind: ``features``; ``backbones``, a converted backbone; or ``checkpoints``, the state of a
            tuning that has not ended.
        runtime: The runtime that computed the features, with its precision.
        input_size: Channels, height and width of the images.
        images: Number of images; None for other kinds.
        num_bytes: Size of the files.
        last_used: UTC time, ISO 8601.
        path: The folder of features, or the file.
    """

    backbone: str
    kind: str
    runtime: str
    input_size: tuple[int, ...]
    images: int | None
    num_bytes: int
    last_used: str
    path: str


@dataclass(frozen=True)
class CacheUsage:
    """What a cache holds.

    Attributes:
        folder: Folder of the cache.
        limit: Largest number of bytes that the cache may take; None without a limit.
        entries: What it holds, the largest first.
        index_bytes: Size of the index of files' hashes.
    """

    folder: str
    limit: int | None
    entries: tuple[CacheEntry, ...]
    index_bytes: int

    @property
    def num_bytes(self) -> int:
        """Size of everything in bytes."""
        return self.index_bytes + sum(entry.num_bytes for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "num_bytes": self.num_bytes}


@dataclass(frozen=True)
class Freed:
    """What was removed.

    Attributes:
        num_bytes: Bytes that are free now.
        files: Number of removed files.
        in_use: Folders that stay because a process uses them.
    """

    num_bytes: int
    files: int
    in_use: tuple[str, ...] = ()


def describe_cache(cache: bool | str | Path = True) -> CacheUsage:
    """Describe what a cache holds.

    Args:
        cache: Folder of the cache. True is the user's own.
    """
    root = cache_folder(cache)
    entries = [_describe_features(folder) for folder in _feature_folders(root)]
    entries += [_describe_file(path) for path in _single_files(root)]
    entries.sort(key=lambda entry: -entry.num_bytes)
    index = sum(_size(path) for path in root.glob(f"{INDEX_NAME}*"))
    return CacheUsage(str(root), read_limit(root), tuple(entries), index)


def clear_cache(cache: bool | str | Path = True, backbone: str | None = None) -> Freed:
    """Remove features that no process uses, converted backbones and checkpoints.

    Args:
        cache: See ``describe_cache``.
        backbone: Remove only what belongs to this timm entry point; a pretrained tag does not
            matter. Default: remove everything, and forget the hashes of files.
    """
    root = cache_folder(cache)
    wanted = None if backbone is None else backbone.partition(".")[0]
    _remove_temporary_files(root)
    removed, in_use = _Removed(), []
    for folder in _feature_folders(root):
        if wanted is not None and _backbone_of(folder) != wanted:
            continue
        with alone(folder) as free:
            if not free:
                in_use.append(str(folder))
                continue
            removed.add(
                *(path for pattern in _PARTS for path in folder.glob(pattern)),
                *folder.glob(".*"),
                folder / KEY_FILE,
            )
            with suppress(OSError):  # another process has just put a file there
                folder.rmdir()
    for path in _single_files(root):
        if wanted is None or _backbone_of(path) == wanted:
            removed.add(path)
    if wanted is None:
        clear_index(root / INDEX_NAME)
    return Freed(removed.num_bytes, removed.files, tuple(in_use))


def limit_cache(max_bytes: int | None, cache: bool | str | Path = True) -> Freed:
    """Set the largest size of a cache, now and after each extraction; None removes the limit.

    Args:
        max_bytes: Largest number of bytes.
        cache: See ``describe_cache``.

    Raises:
        OutputError: The limit cannot be written.
        ValueError: ``max_bytes`` is negative.
    """
    if max_bytes is not None and max_bytes < 0:
        raise ValueError(f"max_bytes is {max_bytes}, expected 0 or more")
    root = cache_folder(cache)
    if max_bytes is None:
        with writing(root / LIMIT_FILE):
            (root / LIMIT_FILE).unlink(missing_ok=True)
        return Freed(0, 0)
    write_atomically(root / LIMIT_FILE, json.dumps({"max_bytes": max_bytes}).encode())
    return enforce_limit(root)


def read_limit(root: Path) -> int | None:
    """Return the largest number of bytes of a cache; None without a limit.

    Raises:
        OutputError: The file of the limit is damaged.
    """
    path = root / LIMIT_FILE
    try:
        limit = json.loads(path.read_text(encoding="utf-8"))["max_bytes"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {reason_of(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} does not hold the limit of a cache: set it again with `headkit cache limit`"
        ) from error
    return max(int(limit), 0)


def enforce_limit(root: Path) -> Freed:
    """Remove what was used longest ago until the cache is as small as its limit says.

    Args:
        root: Folder of the cache.
    """
    _remove_temporary_files(root)
    limit = read_limit(root)
    if limit is None:
        return Freed(0, 0)
    parts = sorted(_removable_parts(root))
    too_many = sum(_size(path) for part in parts for path in part.files) - limit
    removed, in_use = _Removed(), dict[str, None]()
    for part in parts:
        if removed.num_bytes >= too_many:
            break
        if part.folder is None:
            if time.time() - part.last_used > SETTLED:
                removed.add(*part.files)
            continue
        with alone(part.folder) as free:
            if free:
                removed.add(*part.files)
            else:
                in_use[str(part.folder)] = None
    if removed.files:
        logger.info(
            "removed %d files with %d bytes from the cache %s, whose limit is %d bytes",
            removed.files,
            removed.num_bytes,
            root,
            limit,
        )
    return Freed(removed.num_bytes, removed.files, tuple(in_use))


def _remove_temporary_files(root: Path) -> None:
    """Remove what killed processes left in a cache."""
    parts = (root / name for name in (BACKBONES, HEADS, CHECKPOINTS))
    for folder in (root, *parts, *_feature_folders(root)):
        remove_abandoned(folder)


class _Removed:
    """Counts the files that are removed."""

    def __init__(self) -> None:
        self.num_bytes = self.files = 0

    def add(self, *paths: Path) -> None:
        for path in paths:
            size = _size(path)
            with suppress(OSError):
                path.unlink()
                self.num_bytes += size
                self.files += 1


def _feature_folders(root: Path) -> list[Path]:
    return sorted(path for path in (root / FEATURES).glob("*") if is_folder(path))


def _single_files(root: Path) -> list[Path]:
    """Return the files of converted backbones and checkpoints."""
    found = [path for kind in (BACKBONES, CHECKPOINTS) for path in (root / kind).glob("[!.]*")]
    return sorted(path for path in found if is_file(path))


@dataclass(frozen=True, order=True)
class _Part:
    """Files that are removed together: a shard, or those of a converted backbone or a tuning."""

    last_used: float
    files: tuple[Path, ...]
    folder: Path | None = None


def _removable_parts(root: Path) -> Iterator[_Part]:
    for folder in _feature_folders(root):
        for path in (path for pattern in _PARTS for path in folder.glob(pattern)):
            yield _Part(_mtime(path), (path,), folder)
    for _, group in groupby(_single_files(root), _group_of):
        # NAME.onnx comes before NAME.onnx.HASH.data: a model never lacks its data.
        files = tuple(group)
        yield _Part(max(map(_mtime, files)), files)


def _group_of(path: Path) -> tuple[Path, str]:
    return path.parent, path.name.partition(".")[0]


def _backbone_of(path: Path) -> str:
    """Return the architecture in the name of a folder or file: ``resnet50-HASH``."""
    return path.name.partition(".")[0].rpartition("-")[0]


def _describe_features(folder: Path) -> CacheEntry:
    try:
        key = json.loads((folder / KEY_FILE).read_text(encoding="utf-8"))
        engine, cfg = key["engine"], key["preprocessing"]
        runtime, size = f"{engine['name']} {engine['precision']}", tuple(cfg["input_size"])
    except (OSError, ValueError, KeyError, TypeError):
        runtime, size = "unknown", ()
    shards = sorted(folder.glob("shard-*"))
    return CacheEntry(
        backbone=_backbone_of(folder),
        kind=FEATURES,
        runtime=runtime,
        input_size=size,
        images=sum(map(_count_rows, shards)),
        num_bytes=sum(map(_size, folder.iterdir())),
        last_used=_format_time(max(map(_mtime, [folder, folder / KEY_FILE, *shards]))),
        path=str(folder),
    )


def _describe_file(path: Path) -> CacheEntry:
    used, name = _format_time(_mtime(path)), _backbone_of(path)
    return CacheEntry(name, path.parent.name, "", (), None, _size(path), used, str(path))


def _count_rows(shard: Path) -> int:
    """Read the number of images from the header of a safetensors file."""
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 1 << 20)))
        return int(header["digest"]["shape"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error):
        return 0


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_size
    return 0


def _mtime(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
