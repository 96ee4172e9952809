"""Mark a folder of the cache as in use, so that no other process removes files from it.

On POSIX systems a process that uses a folder shares a lock on its file ``key.json``; whoever
removes files takes the lock alone. The system drops the lock of a process that ends. On Windows
nobody can rename the file while it is open.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from headkit.adapters.files import is_folder

KEY_FILE = "key.json"
_RECENT = 3600
"""Seconds in which a folder counts as in use if it has no key or its file system no locks."""


class InUse:
    """A folder that this process uses until ``release``.

    Args:
        folder: A folder that has a file ``key.json``.

    Raises:
        FileNotFoundError: Another process has just removed the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / KEY_FILE
        self._file: IO[bytes] | None = self.path.open("rb")
        try:
            if sys.platform != "win32":
                import fcntl

                with suppress(OSError):  # a file system without locks
                    fcntl.flock(self._file, fcntl.LOCK_SH)
            if not os.path.samestat(os.fstat(self._file.fileno()), self.path.stat()):
                raise FileNotFoundError(self.path)
            touch(self.path)
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """End the use. It may be called again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.release()

    def __reduce__(self) -> tuple[type[InUse], tuple[Path]]:
        """Another process that gets this object uses the folder, too."""
        return InUse, (self.path.parent,)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Take the lock of a folder, and yield False at once if some process uses it."""
    path = folder / KEY_FILE
    try:
        file = path.open("rb")
    except FileNotFoundError:
        # The folder is being made now, or it is what a killed process left.
        yield _is_old(folder.stat().st_mtime if is_folder(folder) else 0.0)
        return
    except OSError:
        yield False
        return
    with file:
        if sys.platform == "win32":
            file.close()
            yield _can_be_renamed(path)
        else:
            yield _lock_alone(file, path)


def _lock_alone(file: IO[bytes], path: Path) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return _is_old(os.fstat(file.fileno()).st_mtime)
    try:  # another process may have made the folder anew since the file was opened
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _is_old(mtime: float) -> bool:
    return time.time() - mtime > _RECENT


def touch(path: Path) -> None:
    """Note that a file is used now; its time of change decides what is removed first."""
    with suppress(OSError):  # a cache of another user
        os.utime(path)


def _can_be_renamed(path: Path) -> bool:
    other = path.with_name(f".{secrets.token_hex(6)}")
    try:
        path.replace(other)
        other.replace(path)
    except OSError:
        return False
    return True
