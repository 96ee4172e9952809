import os
from pathlib import Path

import pytest

import headkit
from headkit.adapters.files import atomic_path, check_writable, write_atomically


def test_failure_keeps_the_old_file_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "kept", b"old")
    with pytest.raises(RuntimeError, match="stop"), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["kept"]  # noqa: PTH208


def test_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    written = write_atomically(tmp_path / "atomic", b"")
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_each_unwritable_path_has_its_own_message(tmp_path: Path) -> None:
    with pytest.raises(headkit.OutputError, match="it is a folder"):
        write_atomically(tmp_path, b"")
    with pytest.raises(headkit.OutputError, match="File name too long"):
        write_atomically(tmp_path / ("x" * 300), b"")
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "folder" / "x"):
        with pytest.raises(headkit.OutputError, match="file is a file, expected a folder"):
            write_atomically(path, b"")


def test_missing_folders_are_made_when_the_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x"
    assert check_writable(path) == path
    assert not (tmp_path / "new").exists()
    assert write_atomically(path, b"content").read_bytes() == b"content"
    assert [one.name for one in path.parent.iterdir()] == ["x"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions bind no root")
def test_folders_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    for path in (tmp_path / "x", tmp_path / "new" / "x"):
        with pytest.raises(headkit.OutputError, match="Permission denied"):
            check_writable(path)


def test_folder_that_cannot_be_made_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(headkit.OutputError, match=r"cannot create the folder .*Permission denied"):
        write_atomically(tmp_path / "new" / "x", b"")
