"""Write a file whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)
"""Seconds between the attempts to replace a file on Windows."""


def check_writable(path: str | Path) -> Path:
    """Fail now, not after minutes of work, if ``path`` cannot be written.

    Its folder may be missing: whoever writes the file makes the folder.

    Raises:
        OutputError: its folder is read-only or is a file, or ``path`` is a folder itself.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; name a file")
        folder = next(folder for folder in path.parents if folder.exists())
        if not folder.is_dir():
            raise OutputError(f"cannot write {path}: {folder} is a file; name a folder")
        with _beside(folder / path.name):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return path


def make_parent_folder(path: Path) -> None:
    """Make the folder that ``path`` lies in, and those above it, where they are missing.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path.parent}: {error.strerror}") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a path beside ``path``; move it there when the block ends, remove it when it fails.

    What lies at ``path`` stays as it was until the new file is complete and on the disk. Its
    folder is made where it is missing.

    Raises:
        OutputError: see ``check_writable``.
    """
    path = check_writable(path)
    make_parent_folder(path)
    with _beside(path) as beside:
        yield beside
        try:
            with beside.open("rb+") as written:
                os.fsync(written.fileno())
            move(beside, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        sync_folder(path.parent)


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` whole or not at all. Returns the path.

    Raises:
        OutputError: see ``check_writable``.
    """
    with atomic_path(path) as beside:
        try:
            beside.write_bytes(content)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return Path(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    # The suffix stays last: writers such as torch.onnx look at it. Created with the mode that the
    # umask gives to any new file, unlike tempfile's 0600, because the file is moved into place.
    beside = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield beside
    finally:
        beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until a rename in ``folder`` is on the disk, where the system can say so.

    Windows cannot open a folder; some network file systems cannot synchronize one.
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target`` and replace what is there.

    Windows refuses to replace a file that another process has open, so try for a second there.

    Raises:
        OSError: ``target`` cannot be replaced.
    """
    for pause in _PAUSES if os.name == "nt" else ():
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(pause)
        else:
            return
    source.replace(target)


def cache_folder(cache: bool | str | Path = True) -> Path:
    """Return the folder for features and what else can be made again.

    It is the one given, ``$HEADKIT_CACHE``, or the user's own cache.

    Raises:
        OutputError: it cannot be made.
    """
    if isinstance(cache, str | Path):
        folder = Path(cache)
    elif "HEADKIT_CACHE" in os.environ:
        folder = Path(os.environ["HEADKIT_CACHE"])
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "headkit"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the cache {folder}: {error.strerror}") from error
    return folder
