import os
from pathlib import Path

import pytest

import headkit
from headkit.adapters.files import atomic_path, write_atomically


def test_failure_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "kept", b"old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(path) as beside:  # noqa: PT012
        beside.write_bytes(b"half")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]  # noqa: PTH208


def test_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    written = write_atomically(tmp_path / "atomic", b"")
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_paths_that_cannot_be_written_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(headkit.OutputError, match="there is no folder"):
        write_atomically(tmp_path / "none" / "x", b"")
    with pytest.raises(headkit.OutputError, match="it is a folder"):
        write_atomically(tmp_path, b"")
    with pytest.raises(headkit.OutputError, match="File name too long"):
        write_atomically(tmp_path / ("x" * 300), b"")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(headkit.OutputError, match="there is no folder"):
        write_atomically(tmp_path / "file" / "x", b"")
