import hashlib
import os
import sqlite3
import time
from pathlib import Path

import pytest

from headkit.adapters.features import file_hashes
from headkit.adapters.features.file_hashes import hash_files


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as unchanged for long enough to be remembered."""
    monkeypatch.setattr(file_hashes, "SETTLED_NS", 0)
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    time.sleep(0.01)
    return path


def _digest(path: Path, index: Path) -> bytes:
    return bytes(hash_files([str(path)], index)[0])


def test_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * number * 1000)
    digests = hash_files([str(path) for path in paths], tmp_path / "index")
    expected = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    assert [digest.tobytes().ljust(32, b"\0") for digest in digests] == expected


def test_unchanged_file_is_not_read_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _digest(file, tmp_path / "index")
    monkeypatch.setattr(file_hashes, "_hash_file", lambda path: pytest.fail(f"read {path}"))
    assert _digest(file, tmp_path / "index") == first


def test_other_content_of_equal_size_under_the_old_date_is_noticed(
    file: Path, tmp_path: Path
) -> None:
    stat = file.stat()
    first = _digest(file, tmp_path / "index")
    file.write_bytes(b"other")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert _digest(file, tmp_path / "index") == hashlib.sha256(b"other").digest() != first


def test_file_moved_over_another_with_its_date_is_noticed(file: Path, tmp_path: Path) -> None:
    _digest(file, tmp_path / "index")
    stat = file.stat()
    other = tmp_path / "other"
    other.write_bytes(b"other")
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(file)
    assert _digest(file, tmp_path / "index") == hashlib.sha256(b"other").digest()


def test_file_that_has_just_changed_is_read_again_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    _digest(path, tmp_path / "index")
    with sqlite3.connect(tmp_path / "index") as table:
        assert table.execute("SELECT COUNT(*) FROM files").fetchone() == (0,)


def test_missing_file_has_no_digest_and_a_damaged_index_is_rebuilt(
    file: Path, tmp_path: Path
) -> None:
    assert _digest(tmp_path / "none.png", tmp_path / "index") == b""
    (tmp_path / "broken").write_bytes(b"not a database, whatever its name may be" * 100)
    assert _digest(file, tmp_path / "broken") == hashlib.sha256(b"first").digest()
