"""Keep a store in a local directory.

A file is written to the folder ``tmp`` and synced; then it gets its name in one step. So a reader
finds the old file, the new one, or none, wherever the writer is killed, and a killed writer leaves
at most one file in ``tmp``, which ``gc`` removes.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG

from headkit.adapters.errors import RegistryError, StoreError
from headkit.adapters.files import exists, move, sync_folder

from .storage import TEMPORARY, ObjectInfo, size_limit

_ATTEMPTS = 100
"""Number of attempts to write a file while ``gc`` removes all temporary files."""


class LocalStorage:
    """A local directory. It refuses symbolic links inside it, as they could lead anywhere."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.url = str(self.root)
        self._real = Path(os.path.realpath(self.root))
        self.place = str(self._real)

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
            status, limit = path.stat(), size_limit(key)
            if not S_ISREG(status.st_mode):  # a named pipe would wait for a writer
                raise StoreError(f"{self.root / key} is not a regular file: remove it")
            if limit is not None and status.st_size > limit:
                raise StoreError(
                    f"{self.root / key} has {status.st_size:,} bytes, expected at most {limit:,}"
                )
            return path.read_bytes()

    def create(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        self._write(key, content, _move_to_new)

    def replace(self, key: str, content: bytes) -> None:
        """See ``Storage``."""
        self._write(key, content, move)

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

    def _write(self, key: str, content: bytes, place: Callable[[Path, Path], None]) -> None:
        """Write an object; ``place`` gives the complete temporary file its name."""
        with self._translate_errors(key):
            for _ in range(_ATTEMPTS):
                with self._write_temporary(key, content) as (temporary, path):
                    try:
                        place(temporary, path)
                    except FileNotFoundError as error:
                        if exists(temporary):
                            raise StoreError(f"{self.root / key}: {error.strerror}") from error
                    else:
                        return
            raise StoreError(
                f"{self.root / key}: each of {_ATTEMPTS} temporary files was removed before it was "
                "complete: run gc only with a grace that is longer than a publish takes"
            )

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
