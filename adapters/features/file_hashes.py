"""Which image is which: by the SHA-256 of its bytes, read again only when a file has changed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

Digests = np.ndarray[Any, np.dtype[np.bytes_]]
"""``[N]`` of dtype ``S32``: 32 bytes each."""

DIGEST = np.dtype("S32")
SETTLED_NS = 2_000_000_000
"""A file that changed less than this before it was read may change again in the same tick of its
file system's clock; as in git's index, such a file is read again the next time."""
_QUERY = 500
_THREADS = 4


def digest_of(content: bytes) -> bytes:
    """Return the identity of an image file with this content."""
    return hashlib.sha256(content).digest()


def digests_of(paths: Sequence[str], index: Path) -> Digests:
    """Return the identities of files; an unreadable one has an empty digest.

    A file is read only if its size, its times of change or its inode differ from what ``index``
    remembers. The time of the inode's change is among them, which no program can set, so that a
    file with other content and the old date is noticed.

    Args:
        paths: of the files.
        index: SQLite file, made if it is not there. It can be deleted at any time.
    """
    absolute = [os.path.abspath(path) for path in paths]  # noqa: PTH100 (a Path each is slow)
    found = np.zeros(len(paths), DIGEST)
    with _opened(index) as table:
        known = _known(table, absolute)
        stats = [_stat(path) for path in absolute]
        stale = []
        for number, (path, stat) in enumerate(zip(absolute, stats, strict=True)):
            row = known.get(path)
            if stat is not None and row is not None and row[:4] == stat:
                found[number] = row[4]
            elif stat is not None:
                stale.append(number)
        now = time.time_ns()
        with ThreadPoolExecutor(_THREADS) as pool:
            read = pool.map(_digest_of_file, (absolute[number] for number in stale))
            rows = []
            for number, digest in zip(stale, read, strict=True):
                found[number] = digest
                stat = stats[number] or (0, now, now, 0)
                # Only a POSIX system has the time of the inode's change.
                settled = now - max(stat[1], stat[2]) > SETTLED_NS
                if digest and settled and os.name == "posix":
                    rows.append((absolute[number], *stat, digest))
        table.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
        table.commit()
    return found


def _digest_of_file(path: str) -> bytes:
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
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _known(table: sqlite3.Connection, paths: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    known = {}
    for start in range(0, len(paths), _QUERY):
        some = paths[start : start + _QUERY]
        marks = ", ".join("?" * len(some))
        query = f"SELECT * FROM files WHERE path IN ({marks})"  # noqa: S608 (marks alone)
        known.update({path: tuple(row) for path, *row in table.execute(query, some)})
    return known


@contextmanager
def _opened(index: Path) -> Iterator[sqlite3.Connection]:
    index.parent.mkdir(parents=True, exist_ok=True)
    try:
        table = _connect(index)
    except sqlite3.DatabaseError:  # damaged: it is a memory of what can be read again
        index.unlink(missing_ok=True)
        table = _connect(index)
    with closing(table):
        yield table


def _connect(index: Path) -> sqlite3.Connection:
    table = sqlite3.connect(index, timeout=60)
    try:
        table.execute("PRAGMA journal_mode = WAL")
        table.execute(
            "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, size INTEGER, "
            "mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, digest BLOB) WITHOUT ROWID"
        )
    except sqlite3.DatabaseError:
        table.close()
        raise
    return table
