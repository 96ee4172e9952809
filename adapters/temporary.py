"""Temporary files and folders beside their target, which a killed process does not leave forever.

Whoever makes one holds a shared lock on it until it is moved or removed. The system drops the lock
of a process that ends, however it ends, so whoever writes the same target next can tell what is
abandoned, and removes it. Where a file system has no locks, and on Windows, that takes an hour.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_RECENT = 3600
"""Seconds in which a file counts as in use where there are no locks."""
_ATTEMPTS = 100
_NAME = re.compile(r"\..+\.[0-9a-f]{12}(\.[^.]*)?")


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """Make an empty file beside ``path``, and remove it at the end if it is still there.

    Raises:
        OSError: The file cannot be made.
    """
    remove_abandoned(path.parent, path)
    # The name keeps its suffix, because writers such as torch.onnx read it. The file is created
    # with the mode of any new file, not with tempfile's 0600, because it becomes the final file.
    for _ in range(_ATTEMPTS):
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            with hold(temporary) as is_held:
                if is_held:
                    yield temporary
                    return
        finally:
            with suppress(OSError):
                temporary.unlink()
    raise FileNotFoundError(f"others remove all temporary files in {path.parent}")


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside ``path``, and remove it with all that is in it at the end.

    Raises:
        OSError: The folder cannot be made.
    """
    remove_abandoned(path.parent, path)
    for _ in range(_ATTEMPTS):
        folder = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        folder.mkdir()
        try:
            with hold(folder) as is_held:
                if is_held:
                    yield folder
                    return
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    raise FileNotFoundError(f"others remove all temporary folders in {path.parent}")


@contextmanager
def hold(path: Path) -> Iterator[bool]:
    """Keep others from removing a file or a folder as abandoned until the block ends.

    Yields:
        False if somebody has just removed it.
    """
    if sys.platform == "win32":  # nobody can remove or rename an open file there
        yield True
        return
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield False
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield _is_same(descriptor, path)
    finally:
        os.close(descriptor)


def remove_abandoned(folder: Path, target: Path | None = None) -> int:
    """Remove the temporary files and folders that killed processes left; return their number.

    Args:
        folder: Folder to look in, not below it.
        target: Remove only what was left on the way to this file. Default: remove everything that
            has the name of a temporary file, in a folder that is headkit's own.
    """
    count = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name) and (target is None or _leads_to(entry.name, target)):
                count += remove_if_abandoned(Path(entry.path))
    return count


def remove_if_abandoned(path: Path) -> bool:
    """Remove a file or a folder that nobody holds; return True if it is gone."""
    try:
        if sys.platform == "win32":
            return _is_old(path) and _remove(path)
        import fcntl

        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:  # a file system without locks
                return _is_old(path) and _remove(path)
            return _is_same(descriptor, path) and _remove(path)
        finally:
            os.close(descriptor)
    except OSError:  # another process has just removed it, or it belongs to another user
        return False


def _leads_to(name: str, target: Path) -> bool:
    """Return True if a temporary file or folder with this name was made for ``target``."""
    stem, _, rest = name[1:].rpartition(".")
    if re.fullmatch("[0-9a-f]{12}", rest):  # a folder, or a file of a target without a suffix
        return stem == target.name
    return stem.rpartition(".")[0] == target.stem and f".{rest}" == target.suffix


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except OSError:
        return False


def _is_old(path: Path) -> bool:
    return time.time() - path.lstat().st_mtime > _RECENT


def _remove(path: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return True
