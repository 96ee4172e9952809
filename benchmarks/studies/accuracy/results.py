"""Results of the study: a file of JSON lines per contender, to which interrupted runs add."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from headkit.adapters.files import make_parent_folder
from headkit.benchmarks.bench.machine import machine

from .cells import Cell

FOLDER = Path(__file__).parents[2] / "results" / "accuracy"
CLAIMS = Path("build") / "accuracy" / "claims"
Key = tuple[str, str, int | str, int]
"""Set, backbone, images per class and draw."""


def key(cell: Cell, draw: int) -> Key:
    """Return what identifies a result of a contender."""
    return cell.set, cell.backbone, cell.images_per_class, draw


def read(path: Path) -> dict[Key, dict[str, Any]]:
    """Return the results in a file by key; none if the file does not exist."""
    rows = {}
    for row in _lines(path):
        if "set" in row:
            rows[row["set"], row["backbone"], row["images_per_class"], row["draw"]] = row
    return rows


def read_machines(path: Path) -> dict[str, dict[str, Any]]:
    """Return the machines in a file by the name that its results give them."""
    return {row["machine"]: row["description"] for row in _lines(path) if "description" in row}


def add(path: Path, cell: Cell, draw: int, values: dict[str, Any]) -> None:
    """Add a result to a file, with the machine that measured it.

    A result is one write to the end of the file, so several processes can add at the same time.
    """
    description = machine()
    name = f"{zlib.crc32(json.dumps(description, sort_keys=True).encode()):08x}"
    identity = {
        "set": cell.set,
        "backbone": cell.backbone,
        "images_per_class": cell.images_per_class,
        "draw": draw,
    }
    rows: list[dict[str, Any]] = [{**identity, **values, "machine": name}]
    if name not in read_machines(path):
        rows.insert(0, {"machine": name, "description": description})
    make_parent_folder(path)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    with path.open("ab+") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        if file.read() not in (b"", b"\n"):
            content = "\n" + content  # the last line is torn
        file.write(content.encode())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def claim(path: Path, cell: Cell, draw: int) -> Iterator[bool]:
    """Claim a result for this process, until the context or the process ends.

    Yields:
        False if the result is there or another process works on it.
    """
    import fcntl

    name = f"{path.stem} {cell.set} {cell.backbone} {cell.images_per_class} {draw}"
    lock = CLAIMS / name.replace(" ", "-")
    make_parent_folder(lock)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield key(cell, draw) not in read(path)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):  # a process was killed while it wrote the line
                yield json.loads(line)
