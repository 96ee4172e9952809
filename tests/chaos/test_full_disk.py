"""A disk that is full from the start, or gets full in the middle of a file.

A limit on the size of files stands for the disk where this user cannot mount one: the system
refuses the same writes, and only the reason has other words.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from headkit import Head, HeadkitError
from headkit.adapters.features.file_hashes import INDEX_NAME, hash_files
from headkit.registry.store.store import HeadStore
from tests.heads import scored_head

from .writers import OUTPUTS, WRITERS, prepare

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the limits are those of POSIX")

SMALL = ("yank", "upgrade", "limit")
"""Writers whose files have fewer than 100 bytes."""


@contextmanager
def _file_size_limit(limit: int) -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "headkit-test", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user cannot mount a disk; the limit on files stands for it")
    try:
        yield folder
    finally:
        unmount = ["umount", "--lazy", str(folder)]
        subprocess.run(unmount, check=True)


def _fill(folder: Path, free: int) -> None:
    """Leave about ``free`` bytes of a disk free; a disk in memory has pages of 4 KiB."""
    with (folder / "filler").open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        file.truncate(max(file.tell() - free, 0))


def _state(folder: Path) -> dict[str, bytes]:
    store = folder / "store"
    paths = [folder / name for name in OUTPUTS] + [
        path for path in store.rglob("*") if path.is_file() and "trash" not in path.parts
    ]
    return {str(path): path.read_bytes() for path in paths if path.exists()}


def _check(folder: Path, name: str, error: BaseException, before: dict[str, bytes]) -> None:
    """The error is clear, what was there is there, and nothing temporary is left."""
    assert isinstance(error, HeadkitError)
    message = str(error)
    assert str(folder) in message
    reasons = [os.strerror(number) for number in (errno.EFBIG, errno.ENOSPC)]
    assert any(reason in message for reason in reasons), message
    after = _state(folder)
    assert {path: after.get(path) for path in before} == before
    assert [path for path in folder.rglob(".*") if path.name != ".nfs"] == []
    assert list((folder / "store" / "tmp").glob("*")) == []
    store = HeadStore(folder / "store")
    assert store.verify() == []
    assert store.read("flowers@prod") == scored_head(2).serialize(), name


@pytest.mark.parametrize(
    ("name", "free"),
    [*((name, 0) for name in WRITERS), *((name, 100) for name in WRITERS if name not in SMALL)],
)
def test_limited_files(name: str, free: int, tmp_path: Path) -> None:
    prepare(tmp_path)
    before = _state(tmp_path)
    with _file_size_limit(free), pytest.raises(HeadkitError) as raised:
        WRITERS[name](tmp_path)
    _check(tmp_path, name, raised.value, before)
    WRITERS[name](tmp_path)


@pytest.mark.parametrize("free", [0, 4096])
@pytest.mark.parametrize("name", WRITERS)
def test_full_disk(name: str, free: int, small_disk: Path) -> None:
    prepare(small_disk)
    before = _state(small_disk)
    _fill(small_disk, free)
    try:
        WRITERS[name](small_disk)
    except HeadkitError as error:
        _check(small_disk, name, error, before)
    else:
        assert free, "nothing can be written to a full disk"
        assert HeadStore(small_disk / "store").verify() == []
    (small_disk / "filler").unlink()
    WRITERS[name](small_disk)


def test_index_of_hashes_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    os.utime(path, (0, 0))
    expected = hash_files([str(path)], tmp_path / "there" / INDEX_NAME)
    index = tmp_path / "cache" / INDEX_NAME
    with caplog.at_level(logging.WARNING, "headkit"), _file_size_limit(0):
        assert hash_files([str(path)], index).tolist() == expected.tolist()
    assert f"the index of hashes {index}" in caplog.text


def test_a_damaged_index_is_made_again(tmp_path: Path) -> None:
    path, index = tmp_path / "a.png", tmp_path / INDEX_NAME
    path.write_bytes(b"a")
    expected = hash_files([str(path)], index).tolist()
    content = index.read_bytes()
    index.write_bytes(content[:100] + b"\xff" * (len(content) - 100))
    assert hash_files([str(path)], index).tolist() == expected
    assert hash_files([str(path)], index).tolist() == expected


def test_no_space_for_temporary_files(tmp_path: Path) -> None:
    path = scored_head(1).save(tmp_path / "head.safetensors")
    with _file_size_limit(10), pytest.raises(HeadkitError, match="set TMPDIR to a folder"):
        HeadStore(tmp_path / "store").publish(path, "flowers")
    assert Head.load(path) == scored_head(1)
