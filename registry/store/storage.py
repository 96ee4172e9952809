"""What a store keeps its bytes in: a local directory, or an object store through fsspec.

Both create an object only if its key is free, and write it whole or not at all. Simultaneous
publishers need nothing else, in particular no locks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

TEMPORARY = "tmp"
"""Folder of a store for files that are not complete yet."""

MAX_BYTES = 2**20
"""Maximum size in bytes of an object that is no head file: a record, a signature or a tag."""


def size_limit(key: str) -> int | None:
    """Return the maximum size of an object in bytes, or None for a head file."""
    return None if key.endswith(".safetensors") else MAX_BYTES


@dataclass(frozen=True)
class ObjectInfo:
    """Key and properties of one object.

    Attributes:
        key: Relative path with ``/``.
        size: Size in bytes.
        modified: Time of the last write in seconds since 1970.
        is_link: True for a symbolic link.
    """

    key: str
    size: int
    modified: float
    is_link: bool = False


class Storage(Protocol):
    """Bytes under keys, which are relative paths with ``/``.

    ``create`` raises ``FileExistsError`` if the object exists, and leaves it as it is. ``read``,
    ``delete``, ``refresh`` and ``stat`` raise ``FileNotFoundError`` if it does not exist. All raise
    ``RegistryError`` if the storage cannot be used.
    """

    url: str
    place: str
    """The same for all ways to write the URL: of a directory, its path without links."""

    def read(self, key: str) -> bytes:
        """Return the content of an object; raise ``StoreError`` if it exceeds ``size_limit``."""

    def create(self, key: str, content: bytes) -> None:
        """Write an object that does not exist yet."""

    def replace(self, key: str, content: bytes) -> None:
        """Write an object, whether it exists or not."""

    def delete(self, key: str) -> None:
        """Remove an object."""

    def refresh(self, key: str) -> None:
        """Set the time of the last write to now."""

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield all objects under ``prefix``, which ends in ``/``, in no particular order."""

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly under ``prefix``, which ends in ``/``."""

    def stat(self, key: str) -> ObjectInfo:
        """Return the properties of one object."""
