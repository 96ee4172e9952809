"""Where a store keeps its bytes: a local directory, or an object store through fsspec.

Both create an object only if there is none, and whole or not at all: publishers are kept apart by
that alone, without locks.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headkit.adapters.errors import DependencyMissing, RegistryError, StoreError, first_line
from headkit.adapters.files import sync_folder

logger = logging.getLogger("headkit")

TEMPORARY = "tmp"
"""Folder of a local store where files are written before they move to their place."""


@dataclass(frozen=True)
class Stored:
    """One object. ``modified`` is in seconds since 1970; ``is_link`` is true for symbolic links."""

    key: str
    size: int
    modified: float
    is_link: bool = False


class Storage(Protocol):
    """Bytes under keys, which are relative paths with ``/``.

    ``create`` raises ``FileExistsError`` and leaves what is there; ``read``, ``delete`` and
    ``refresh`` raise ``FileNotFoundError``. All raise ``RegistryError`` where the storage cannot be
    used.
    """

    url: str

    def read(self, key: str) -> bytes:
        """Return an object."""

    def create(self, key: str, content: bytes) -> None:
        """Write an object if there is none."""

    def replace(self, key: str, content: bytes) -> None:
        """Write an object, whatever is there."""

    def delete(self, key: str) -> None:
        """Remove an object."""

    def refresh(self, key: str) -> None:
        """Make ``modified`` now."""

    def objects(self, prefix: str) -> Iterator[Stored]:
        """List all under ``prefix``, which ends in ``/``, in no order."""

    def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders right under ``prefix``, which ends in ``/``."""

    def one(self, key: str) -> Stored:
        """Describe one object."""


def open_storage(url: str | Path) -> Storage:
    """Return the storage at ``url``: a path, ``file://``, or what fsspec knows.

    Raises:
        DependencyMissing: fsspec's package for this kind of URL is not installed.
        RegistryError: fsspec does not know this kind of URL.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(Path(url))
    if "::" in text:
        raise RegistryError(f"{text} is no place for a store: name one URL, not a chain")
    return LocalStorage(Path(rest)) if scheme in ("file", "local") else ObjectStorage(text)


class LocalStorage:
    """A directory. Symbolic links in it are refused: they could lead anywhere."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.url = str(self.root)
        self._real = Path(os.path.realpath(self.root))

    def _path(self, key: str) -> Path:
        """The path of an object, none of its parts a link."""
        if not key or any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key:
            raise RegistryError(f"{key!r} is no key of a store")
        path = self._real / key
        if os.path.realpath(path) != str(path):
            raise StoreError(
                f"{self.root / key} is or lies behind a symbolic link: a store has none; remove it"
            )
        return path

    def read(self, key: str) -> bytes:
        """See ``Storage``."""
        with self._translate_errors(key):
            return self._path(key).read_bytes()

    def create(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key), self._written(key, content) as (beside, path):
            os.link(beside, path)  # unlike a rename, this fails where there is a file

    def replace(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key), self._written(key, content) as (beside, path):
            beside.replace(path)

    def delete(self, key: str) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            self._path(key).unlink()

    def refresh(self, key: str) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            os.utime(self._path(key))

    def one(self, key: str) -> Stored:
        """See ``Storage``."""
        with self._translate_errors(key):
            found = self._path(key).stat()
        return Stored(key, found.st_size, found.st_mtime)

    def objects(self, prefix: str) -> Iterator[Stored]:
        """See ``Storage``."""
        with self._translate_errors(prefix):
            yield from _walk(self._path(prefix.rstrip("/")), prefix)

    def folders(self, prefix: str) -> list[str]:
        """See ``Storage``."""
        with self._translate_errors(prefix):
            folder = self._path(prefix.rstrip("/"))
            with suppress(FileNotFoundError), os.scandir(folder) as entries:
                return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return []

    @contextmanager
    def _written(self, key: str, content: bytes) -> Iterator[tuple[Path, Path]]:
        """Yield a complete file in the folder for temporary ones, and the path that it gets."""
        path = self._path(key)
        folder = self._path(TEMPORARY)
        for parent in (folder, path.parent):
            parent.mkdir(parents=True, exist_ok=True)
        beside = folder / secrets.token_hex(8)
        try:
            with beside.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield beside, path
        finally:
            beside.unlink(missing_ok=True)
        sync_folder(path.parent)

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        """Pass on what callers expect; other errors of the system become ours."""
        try:
            yield
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError as error:
            raise StoreError(f"{self.root / key}: {error.strerror or error}") from error


def _walk(folder: Path, prefix: str) -> Iterator[Stored]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                is_link = entry.is_symlink()
                yield Stored(f"{prefix}{entry.name}", found.st_size, found.st_mtime, is_link)


class ObjectStorage:
    """An object store through fsspec, such as ``s3://``, ``gs://`` or ``az://``.

    https://filesystem-spec.readthedocs.io. Creation is a conditional write where fsspec's package
    for the store makes it one, as those for S3, Google Cloud Storage and Azure do.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            scheme = url.partition("://")[0]
            package = _PACKAGES.get(scheme, "the package that fsspec names")
            raise DependencyMissing.for_feature(f"a store at {scheme}://", package) from error
        except ValueError as error:
            raise RegistryError(f"{url} is no place for a store: {first_line(error)}") from error
        self.url = url.rstrip("/")
        self.root = self.root.rstrip("/")
        if url.partition("://")[0] not in (*_PACKAGES, "memory"):
            logger.warning(
                "%s: fsspec makes no conditional writes there that headkit knows of: let one "
                "publisher at a time write",
                self.url,
            )

    def read(self, key: str) -> bytes:
        """See ``Storage``."""
        with self._translate_errors(key):
            return bytes(self.files.cat_file(self._path(key)))

    def create(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            try:
                self.files.pipe_file(self._path(key), content, mode="create")
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                raise StoreError(f"{self.url}: there is no such bucket or container") from error
            except OSError as error:
                if _is_conflict(error):
                    raise FileExistsError(key) from error
                raise

    def replace(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            self.files.pipe_file(self._path(key), content)

    def delete(self, key: str) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            self.files.info(self._path(key))  # S3 deletes what is not there without a word
            self.files.rm_file(self._path(key))

    def refresh(self, key: str) -> None:
        """Write the object again: object stores count from the last write."""
        self.replace(key, self.read(key))

    def one(self, key: str) -> Stored:
        """See ``Storage``."""
        with self._translate_errors(key):
            return self._stored(self.files.info(self._path(key)))

    def objects(self, prefix: str) -> Iterator[Stored]:
        """See ``Storage``."""
        with self._translate_errors(prefix), suppress(FileNotFoundError):
            found = self.files.find(f"{self.root}/{prefix}".rstrip("/"), detail=True)
            yield from map(self._stored, found.values())

    def folders(self, prefix: str) -> list[str]:
        """See ``Storage``."""
        with self._translate_errors(prefix), suppress(FileNotFoundError):
            found = self.files.ls(f"{self.root}/{prefix}".rstrip("/"), detail=True)
            names = [str(one["name"]).rstrip("/") for one in found if one["type"] == "directory"]
            return [name.rpartition("/")[2] for name in names]
        return []

    def _stored(self, found: dict[str, Any]) -> Stored:
        key = str(found["name"]).removeprefix(self.root).lstrip("/")
        times = (found.get(name) for name in ("LastModified", "mtime", "last_modified", "created"))
        when = next((one for one in times if one is not None), time.time())
        modified = when.timestamp() if hasattr(when, "timestamp") else float(when)
        return Stored(key, int(found["size"] or 0), modified)

    def _path(self, key: str) -> str:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise RegistryError(f"{key!r} is no key of a store")
        return f"{self.root}/{key}"

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, FileNotFoundError, RegistryError):
            raise
        except Exception as error:  # each package of fsspec raises errors of its own client
            raise StoreError(f"{self.url}/{key}: {first_line(error)}") from error


_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}


def _is_conflict(error: BaseException) -> bool:
    """Whether a store refused a conditional write because the object is there (HTTP 409, 412)."""
    text = str(error)
    return any(
        mark in text for mark in ("PreconditionFailed", "pre-conditions", "ConditionalRequest")
    )
