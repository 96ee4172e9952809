"""Write complete files or none, and find the cache folder."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError

_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)
"""Seconds between the attempts to replace a file on Windows."""


def check_writable(path: str | Path) -> Path:
    """Raise an error now, not after minutes of work, if ``path`` cannot be written.

    The folder may be missing: the functions that write the file make the folder.

    Raises:
        OutputError: The folder is read-only or is a file, or ``path`` itself is a folder.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder, expected the path of a file")
        folder = next(folder for folder in path.parents if folder.exists())
        if not folder.is_dir():
            raise OutputError(f"cannot write {path}: {folder} is a file, expected a folder")
        with _temporary_path(folder / path.name):
            pass
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return path


def explain_no_file(path: str | Path) -> str | None:
    """Return why there is no file to read at ``path``; None if there is one.

    A named pipe or a device would be read without end.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return "no such file"
    except (OSError, ValueError) as error:  # permissions, or a name that no file can have
        return getattr(error, "strerror", None) or str(error)
    if stat.S_ISDIR(mode):
        return "it is a folder, expected a file"
    return None if stat.S_ISREG(mode) else "it is not a regular file"


def make_parent_folder(path: Path) -> None:
    """Make the folder of ``path``, and its parents, if they are missing.

    Raises:
        OutputError: The folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {path.parent}: {error.strerror}") from error


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; move its file to ``path`` at the end, or remove it on an error.

    A file at ``path`` stays as it was until the new file is complete and on the disk. A missing
    folder is made.

    Raises:
        OutputError: See ``check_writable``.
    """
    path = check_writable(path)
    make_parent_folder(path)
    with _temporary_path(path) as temporary:
        yield temporary
        try:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            move(temporary, path)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
        sync_folder(path.parent)


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write all of ``content`` to ``path``, or nothing. Return the path.

    Raises:
        OutputError: See ``check_writable``.
    """
    with atomic_path(path) as temporary:
        try:
            temporary.write_bytes(content)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error
    return Path(path)


@contextmanager
def _temporary_path(path: Path) -> Iterator[Path]:
    # The name keeps its suffix, because writers such as torch.onnx read it. The file is created
    # with the mode of any new file, not with tempfile's 0600, because it becomes the final file.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until a rename in ``folder`` is on the disk, if the system supports that.

    Windows cannot open a folder, and some network file systems cannot synchronize one.
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
    """Rename ``source`` to ``target``, which may exist.

    Windows refuses to replace a file that another process has open, so there the function tries
    for a second.

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
    """Return the folder for features and other files that can be computed again.

    Args:
        cache: The folder; if it is not a path, ``$HEADKIT_CACHE`` or the user's own cache.

    Raises:
        OutputError: The folder cannot be made.
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
        raise OutputError(f"cannot create the cache {folder}: {error.strerror}") from error
    return folder
