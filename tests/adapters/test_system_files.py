from pathlib import Path

import pytest

from headkit.adapters.errors import DataError
from headkit.adapters.images.sources import iterate_images
from headkit.adapters.system_files import count_files, is_system_name


def test_names_of_systems_and_tools_are_known_in_any_case() -> None:
    for name in (".git", "._a.jpg", "__macosx", "Thumbs.DB", "@eaDir", "LOST+FOUND", "#recycle"):
        assert is_system_name(name), name
    for name in ("cat", "a.jpg", "__init__", "@home", "thumbs", "recycle", "-", "#1", "lost"):
        assert not is_system_name(name), name


def test_files_are_counted_without_following_links(tmp_path: Path) -> None:
    for name in ("a/1", "a/b/2", "a/b/3", "c/4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found, examples = count_files(str(tmp_path / "a"))
    assert found == 4
    assert len(examples) == 3


def test_hidden_images_of_a_folder_are_not_predicted(tmp_path: Path) -> None:
    for name in ("1.jpg", "._1.jpg", "__MACOSX/2.jpg", ".cache/3.jpg", "a/4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path for _, path in iterate_images(tmp_path)] == [
        tmp_path / "1.jpg",
        tmp_path / "a" / "4.png",
    ]
    inside = tmp_path / ".cache"  # the folder itself may be hidden
    assert [path for _, path in iterate_images(inside)] == [inside / "3.jpg"]
    (tmp_path / "__MACOSX" / "._5.jpg").touch()
    (tmp_path / "__MACOSX" / "2.jpg").unlink()
    with pytest.raises(DataError, match="there are no images in the folder"):
        list(iterate_images(tmp_path / "__MACOSX"))
