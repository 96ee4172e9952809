"""Where a store keeps its bytes: a local directory, or an object store through fsspec.

Both create an object only if its key is free, and write it whole or not at all. Simultaneous
publishers need nothing else, in particular no locks.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from stat import S_ISREG
from typing import Any, Protocol

from headkit.adapters.errors import DependencyMissing, RegistryError, StoreError, first_line
from headkit.adapters.files import move, sync_folder

logger = logging.getLogger("headkit")

TEMPORARY = "tmp"
"""Folder of a local store for files that are not complete yet."""


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

    def read(self, key: str) -> bytes:
        """Return the content of an object."""

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


def open_storage(url: str | Path) -> Storage:
    """Return the storage at ``url``: a path, a ``file://`` URL, or a URL that fsspec supports.

    Raises:
        DependencyMissing: fsspec's package for this kind of URL is not installed.
        RegistryError: fsspec does not support this kind of URL.
    """
    text = str(url)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return LocalStorage(Path(url))
    if "::" in text:
        raise RegistryError(f"{text} cannot hold a store: pass a single URL, not a chained one")
    return LocalStorage(Path(rest)) if scheme in ("file", "local") else ObjectStorage(text)


class LocalStorage:
    """A local directory. It refuses symbolic links inside it, as they could lead anywhere."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.url = str(self.root)
        self._real = Path(os.path.realpath(self.root))

    def _path(self, key: str) -> Path:
        """Return the path of an object; raise ``StoreError`` if a part of it is a link."""
        if not key or any(part in ("", ".", "..") for part in key.split("/")) or "\\" in key:
            raise RegistryError(f"{key!r} is not a valid key of a store")
        path = self._real / key
        if os.path.realpath(path) != str(path):
            raise StoreError(
                f"{self.root / key} is a symbolic link or is inside one; a store must not contain "
                "links: remove it"
            )
        return path

    def read(self, key: str) -> bytes:
        """See ``Storage``."""
        with self._translate_errors(key):
            path = self._path(key)
            if not S_ISREG(path.stat().st_mode):  # a named pipe would wait for a writer
                raise StoreError(f"{self.root / key} is not a regular file: remove it")
            return path.read_bytes()

    def create(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key), self._write_temporary(key, content) as (temporary, path):
            _move_to_new(temporary, path)

    def replace(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        with self._translate_errors(key), self._write_temporary(key, content) as (temporary, path):
            move(temporary, path)

    def delete(self, key: str) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            self._path(key).unlink()

    def refresh(self, key: str) -> None:
        """See ``Storage``."""
        with self._translate_errors(key):
            os.utime(self._path(key))

    def stat(self, key: str) -> ObjectInfo:
        """See ``Storage``."""
        with self._translate_errors(key):
            status = self._path(key).stat()
        return ObjectInfo(key, status.st_size, status.st_mtime)

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
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
    def _write_temporary(self, key: str, content: bytes) -> Iterator[tuple[Path, Path]]:
        """Write a temporary file; yield its path and the path of the object."""
        path = self._path(key)
        folder = self._path(TEMPORARY)
        for parent in (folder, path.parent):
            parent.mkdir(parents=True, exist_ok=True)
        temporary = folder / secrets.token_hex(8)
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            yield temporary, path
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        """Pass on the errors that ``Storage`` documents; turn other ``OSError``s into ours."""
        try:
            yield
        except (FileExistsError, FileNotFoundError):
            raise
        except OSError as error:
            raise StoreError(f"{self.root / key}: {error.strerror or error}") from error


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give a complete file the name ``path`` if nothing has that name, in one step for all readers.

    A hard link does this, and so does a rename on Windows. Where a file system has no hard links
    (FAT, some network shares), publishers take turns: each locks the folder of temporary files,
    looks, and renames. The system releases the lock of a process that dies.

    Raises:
        FileExistsError: ``path`` exists.
        StoreError: this system has none of the three.
    """
    try:
        os.link(temporary, path)
    except AttributeError:  # not every system has hard links
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return
    if os.name == "nt":
        temporary.rename(path)
        return
    with _locked(temporary.parent):
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.rename(path)


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What ``os.link`` raises on file systems without hard links."""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError as missing:
        raise StoreError(
            f"{folder}: this system has neither hard links nor locks, so two publishers could "
            "overwrite each other's work: put the store on another file system"
        ) from missing
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _walk(folder: Path, prefix: str) -> Iterator[ObjectInfo]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                key, is_link = f"{prefix}{entry.name}", entry.is_symlink()
                yield ObjectInfo(key, status.st_size, status.st_mtime, is_link)


class ObjectStorage:
    """An object store through fsspec, such as ``s3://``, ``gs://`` or ``az://``.

    https://filesystem-spec.readthedocs.io. ``create`` is a conditional write if fsspec's package
    for the store supports it, as those for S3, Google Cloud Storage and Azure do.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self.files, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            scheme = url.partition("://")[0]
            package = _PACKAGES.get(scheme)
            if package is None:
                raise DependencyMissing(
                    f"a store at {scheme}:// needs a package that is missing: {first_line(error)}"
                ) from error
            raise DependencyMissing.for_feature(f"a store at {scheme}://", package) from error
        except ValueError as error:
            raise RegistryError(f"{url} cannot hold a store: {first_line(error)}") from error
        self.url = url.rstrip("/")
        self.root = self.root.rstrip("/")
        if url.partition("://")[0] not in (*_PACKAGES, "memory"):
            logger.warning(
                "%s: headkit does not know whether conditional writes work there: let only one "
                "publisher write at a time",
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
            except Exception as error:
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
            self.files.info(self._path(key))  # S3 reports no error if the object does not exist
            self.files.rm_file(self._path(key))

    def refresh(self, key: str) -> None:
        """Write the object again: object stores cannot set the time of the last write."""
        self.replace(key, self.read(key))

    def stat(self, key: str) -> ObjectInfo:
        """See ``Storage``."""
        with self._translate_errors(key):
            return self._object_info(self.files.info(self._path(key)))

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ``Storage``."""
        with self._translate_errors(prefix), suppress(FileNotFoundError):
            details = self.files.find(f"{self.root}/{prefix}".rstrip("/"), detail=True)
            yield from map(self._object_info, details.values())

    def folders(self, prefix: str) -> list[str]:
        """See ``Storage``."""
        with self._translate_errors(prefix), suppress(FileNotFoundError):
            details = self.files.ls(f"{self.root}/{prefix}".rstrip("/"), detail=True)
            names = [str(one["name"]).rstrip("/") for one in details if one["type"] == "directory"]
            return [name.rpartition("/")[2] for name in names]
        return []

    def _object_info(self, detail: dict[str, Any]) -> ObjectInfo:
        key = str(detail["name"]).removeprefix(self.root).lstrip("/")
        times = (detail.get(name) for name in ("LastModified", "mtime", "last_modified", "created"))
        when = next((one for one in times if one is not None), time.time())
        modified = when.timestamp() if hasattr(when, "timestamp") else float(when)
        return ObjectInfo(key, int(detail["size"] or 0), modified)

    def _path(self, key: str) -> str:
        if any(part in ("", ".", "..") for part in key.split("/")):
            raise RegistryError(f"{key!r} is not a valid key of a store")
        return f"{self.root}/{key}"

    @contextmanager
    def _translate_errors(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, FileNotFoundError, RegistryError):
            raise
        except Exception as error:  # each package for fsspec raises the errors of its own client
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


_CONFLICTS = ("PreconditionFailed", "ConditionalRequestConflict")


def _is_conflict(error: BaseException) -> bool:
    """Return True if a store refused a conditional write because the object exists.

    fsspec's packages raise ``FileExistsError`` for most of these refusals. For the others they pass
    on an error of the store's client, itself or as the cause: that of botocore has the code of S3,
    those of Google Cloud Storage and Azure have the status of HTTP.
    """
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, Mapping) and response.get("Error", {}).get("Code") in _CONFLICTS:
            return True
        if HTTPStatus.PRECONDITION_FAILED in (
            getattr(cause, "code", None),
            getattr(cause, "status_code", None),
        ):
            return True
        cause = cause.__cause__
    return False
