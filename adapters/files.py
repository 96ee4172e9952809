"""The door to the file system: complete files or none, and errors that say path and reason."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from .errors import HeadkitError, OutputError, first_line
from .temporary import temporary_path

_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.3)
"""Seconds between the attempts to replace a file on Windows."""


NO_SUCH_FILE = "no such file"


def reason_of(error: OSError) -> str:
    """Return why the system refused something: ``No space left on device``."""
    return error.strerror or first_line(error)


def is_file(path: str | Path) -> bool:
    """Return True if ``path`` leads to a file.

    False also means that it cannot be found out, because a folder above it may not be searched:
    ``check_readable`` says so. ``Path.is_file`` would raise an error there before Python 3.14.
    """
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | Path) -> bool:
    """Return True if ``path`` leads to a folder, see ``is_file``."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: str | Path) -> bool:
    """Return True if ``path`` leads to a file or a folder, see ``is_file``."""
    return os.path.exists(path)  # noqa: PTH110


def is_same_file(one: str | Path, other: str | Path) -> bool:
    """Return True if both paths lead to the same file, also through links."""
    return exists(one) and exists(other) and Path(one).samefile(other)


def why_missing(path: str | os.PathLike[str]) -> str:
    """Return why ``path`` leads to nothing; empty if it leads to a file or a folder.

    ``NO_SUCH_FILE`` is only one of the reasons: a folder above it may not be searched.
    """
    try:
        os.stat(path)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return NO_SUCH_FILE
    except OSError as error:
        return reason_of(error)
    return ""


def check_readable(path: str | Path, what: str, error: type[HeadkitError]) -> Path:
    """Raise an error that says why a file cannot be read, if it cannot.

    Libraries that open a file themselves call every reason "no such file".

    Args:
        path: Path of the file.
        what: What messages call it: ``model``, ``head``.
        error: Error to raise; its message starts with ``cannot read WHAT PATH``.
    """
    path = Path(path)
    try:
        if not S_ISREG(path.stat().st_mode):  # a named pipe would wait for a writer
            kind = "a folder, expected a file" if is_folder(path) else "not a regular file"
            raise error(f"cannot read {what} {path}: it is {kind}")
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError, ValueError) as missing:
        raise error(f"cannot read {what} {path}: {NO_SUCH_FILE}") from missing
    except OSError as refused:
        raise error(f"cannot read {what} {path}: {reason_of(refused)}") from refused
    return path


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block, which writes ``path``, into headkit's error.

    Raises:
        OutputError: The system refused something; the message has the path and the reason.
    """
    try:
        yield
    except OSError as error:
        other = error.filename if isinstance(error.filename, str) else ""
        # Temporary files are beside the path.
        where = f"{other}: " if other and Path(other).parent != Path(path).parent else ""
        raise OutputError(f"cannot write {path}: {where}{reason_of(error)}") from error


def make_folder(folder: str | Path) -> Path:
    """Make a folder, and its parents, if they are missing.

    Raises:
        OutputError: It cannot be made.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {folder}: {reason_of(error)}") from error
    return folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Make a folder in the system's folder for temporary files, and remove it at the end.

    Raises:
        OutputError: It cannot be made, or the block cannot write to it.
    """
    advice = "free some space, or set TMPDIR to a folder on another disk"
    try:
        made = tempfile.TemporaryDirectory(prefix="headkit-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(
            f"cannot make a temporary folder: {reason_of(error)}: {advice}"
        ) from error
    with made as folder:
        try:
            yield Path(folder)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(folder):
                raise
            raise OutputError(
                f"cannot write temporary files to {folder}: {reason_of(error)}: {advice}"
            ) from error


def check_writable(path: str | Path) -> Path:
    """Raise an error now, not after minutes of work, if ``path`` cannot be written.

    The folder may be missing: the functions that write the file make the folder.

    Raises:
        OutputError: The folder is read-only or is a file, or ``path`` itself is a folder.
    """
    path = Path(path)
    with writing(path):
        if is_folder(path):
            raise OutputError(f"cannot write {path}: it is a folder, expected the path of a file")
        # A folder that may not be searched is found when the file is made there.
        folder = next(folder for folder in path.parents if exists(folder))
        if not is_folder(folder):
            raise OutputError(f"cannot write {path}: {folder} is a file, expected a folder")
        with temporary_path(folder / path.name):
            pass
    return path


def make_parent_folder(path: Path) -> None:
    """Make the folder of ``path``, and its parents, if they are missing.

    Raises:
        OutputError: The folder cannot be made.
    """
    make_folder(path.parent)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path; move its file to ``path`` at the end, or remove it on an error.

    A file at ``path`` stays as it was until the new file is complete and on the disk. A missing
    folder is made. A process that is killed leaves at most the temporary file, see ``temporary``.

    Raises:
        OutputError: See ``check_writable``; or the block or the system cannot write the file.
    """
    path = check_writable(path)
    make_parent_folder(path)
    with writing(path), temporary_path(path) as temporary:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        move(temporary, path)
        sync_folder(path.parent)


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write all of ``content`` to ``path``, or nothing. Return the path.

    Raises:
        OutputError: See ``atomic_path``.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return Path(path)


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
    return make_folder(folder)
