"""Hash image files with SHA-256, and read a file again only if it has changed."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np

from headkit.adapters.errors import OutputError
from headkit.adapters.files import is_file, make_folder

logger = logging.getLogger("headkit")

Digests = np.ndarray[Any, np.dtype[np.bytes_]]
"""``[N]`` of dtype ``S32``: 32 bytes each; empty for a file that cannot be read."""

DIGEST = np.dtype("S32")
INDEX_NAME = "files.sqlite"
"""Name of the index in the folder of a cache."""
SETTLED_NS = 2_000_000_000
"""Nanoseconds after a change in which a file may change again within the same tick of its file
system's clock. As in git's index, a file that was read so soon is read again the next time."""
_QUERY = 500
_THREADS = 4


def hash_content(content: bytes) -> bytes:
    """Return the digest of an image file with this content: its SHA-256, 32 bytes."""
    return hashlib.sha256(content).digest()


def hash_files(paths: Sequence[str], index: Path) -> Digests:
    """Return the digests of files, ``[N]``; the digest of an unreadable file is empty.

    A file is read only if its size, its times of change or its inode differ from those in
    ``index``. No program can set the time of the inode's change, so a file with new content and
    its old date is read again.

    Args:
        paths: Paths of the files.
        index: SQLite file; created if it does not exist. It can be deleted at any time. If it
            cannot be read or written, every file is read, and a warning says why.
    """
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (a Path each is slow)
    digests = np.zeros(len(paths), DIGEST)
    known = _read_index(index, absolute)
    stats = [_stat(path) for path in absolute]
    stale = []
    for number, (path, stat) in enumerate(zip(absolute, stats, strict=True)):
        row = known.get(path)
        if stat is not None and row is not None and row[:4] == stat:
            digests[number] = row[4]
        elif stat is not None:
            stale.append(number)
    now = time.time_ns()
    with ThreadPoolExecutor(_THREADS) as pool:
        hashes = pool.map(_hash_file, (absolute[number] for number in stale))
        rows = []
        for number, digest in zip(stale, hashes, strict=True):
            digests[number] = digest
            stat = stats[number] or (0, now, now, 0)
            # Only a POSIX system has the time of the inode's change.
            settled = now - max(stat[1], stat[2]) > SETTLED_NS
            if digest and settled and os.name == "posix":
                rows.append((absolute[number], *stat, digest))
    if rows:
        _write_index(index, rows)
    return digests


def clear_index(index: Path) -> None:
    """Forget all hashes. Other processes may use the index at the same time.

    Raises:
        OutputError: The index cannot be written.
    """
    if is_file(index):
        try:
            with _open_index(index) as table:
                table.execute("DELETE FROM files")
                table.commit()
                table.execute("VACUUM")
        except sqlite3.Error as error:
            raise OutputError(f"cannot clear {index}: {error}") from error


def _hash_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return b""


def _stat(path: str) -> tuple[int, int, int, int] | None:
    try:
        stat = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    if not S_ISREG(stat.st_mode):  # reading a named pipe would wait for a writer
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _read_index(index: Path, paths: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    rows = {}
    try:
        with _open_index(index) as table:
            for start in range(0, len(paths), _QUERY):
                some_paths = paths[start : start + _QUERY]
                marks = ", ".join("?" * len(some_paths))
                query = f"SELECT * FROM files WHERE path IN ({marks})"  # noqa: S608 (question marks)
                rows.update({path: tuple(row) for path, *row in table.execute(query, some_paths)})
    except (sqlite3.Error, OutputError) as error:
        _forget(index, error, "read")
    return rows


def _write_index(index: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    try:
        with _open_index(index) as table:
            table.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
            table.commit()
    except (sqlite3.Error, OutputError) as error:
        _forget(index, error, "write")


def _forget(index: Path, error: Exception, what: str) -> None:
    """Go on without the index, and remove it if it is damaged; the files can be hashed again.

    SQLite calls what the system refuses an ``OperationalError``: no space, no permission, a lock.
    """
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        with suppress(OSError):
            for path in (index, *index.parent.glob(f"{index.name}-*")):
                path.unlink(missing_ok=True)
    logger.warning("cannot %s the index of hashes %s: %s", what, index, error)


@contextmanager
def _open_index(index: Path) -> Iterator[sqlite3.Connection]:
    make_folder(index.parent)
    with closing(sqlite3.connect(index, timeout=60)) as table:
        table.execute("PRAGMA journal_mode = WAL")
        table.execute(
            "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, "
            "mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, digest BLOB) WITHOUT ROWID"
        )
        yield table
