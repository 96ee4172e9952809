"""What counts as one image, as several, or as a folder of them."""

import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from headkit.adapters.data.listing import list_folder
from headkit.adapters.errors import DataError
from headkit.adapters.images.sources import iterate_images, list_images

IMAGE = Image.new("RGB", (5, 4), "red")
ARRAY = np.zeros((4, 5, 3), np.uint8)
TENSOR = torch.zeros(3, 4, 5, dtype=torch.uint8)


@pytest.mark.parametrize(
    "image", ["a.png", Path("a.png"), b"abc", IMAGE, ARRAY, ARRAY[:, :, 0], TENSOR, TENSOR[0]]
)
def test_one_image_is_one_image_alone_and_in_every_collection(image: Any) -> None:
    name = str(image) if isinstance(image, str | Path) else "the image"
    ((found, source),) = iterate_images(image)
    assert found == name
    assert source is image or source == image
    for several in ([image], (image,), deque([image]), iter([image]), {0: image}.values()):
        ((found, _),) = iterate_images(several)
        assert found == (name if name != "the image" else "image 0")


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (2, 4, 5, 1), (2, 4, 5, 4)])
def test_arrays_and_tensors_of_four_dimensions_are_several_images(shape: tuple[int, ...]) -> None:
    several = np.zeros(shape, np.uint8)
    assert [name for name, _ in iterate_images(several)] == ["image 0", "image 1"]
    assert [name for name, _ in iterate_images(torch.tensor(several))] == ["image 0", "image 1"]
    assert list(iterate_images(several[:0])) == []


def test_columns_of_paths_are_several_images() -> None:
    paths = ["a.png", "b.png"]
    frame = pd.DataFrame({"path": paths, "n": [1, 2]}, index=["x", "y"])
    for column in (frame["path"], frame["path"].to_numpy(), pd.Index(paths), np.array(paths)):
        assert [name for name, _ in iterate_images(column)] == paths
    images = np.empty(2, object)
    images[:] = [IMAGE, IMAGE]
    assert list_images(images) == [IMAGE, IMAGE]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "images is NoneType, expected an image, a folder or an iterable of images$"),
        (3.5, "images is float"),
        (Image.Image, "images is type"),
        ({"image": "a.png"}, "images is dict, .* pass the column or the values"),
        (pd.DataFrame({"path": ["a.png"]}), "images is DataFrame, .* pass the column"),
    ],
)
def test_what_holds_no_images_is_refused(images: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_images(images)


def test_a_folder_is_listed_like_a_sorted_rglob(tmp_path: Path) -> None:
    names = ["b.png", "a/z.JPG", "a/b/c.webp", "a.png", "a-b/x.tif", "Z.bmp", "10.gif", "9.ppm"]
    for name in [*names, "notes.txt", "a/labels.csv", "x.png/inside.png"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    expected = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    expected = [path for path in expected if path.suffix not in (".txt", ".csv")]
    assert [Path(name) for name, _ in iterate_images(tmp_path)] == expected
    assert list_images(str(tmp_path)) == expected


def test_hidden_and_system_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    for name in (
        "a.png",
        ".b.png",
        ".thumbs/c.png",
        "__MACOSX/d.png",
        "x/.ipynb_checkpoints/e.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == [tmp_path / "a.png"]
    # A hidden folder that the user names is meant.
    assert list_images(tmp_path / ".thumbs") == [tmp_path / ".thumbs" / "c.png"]


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").touch()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "broken.png").symlink_to(tmp_path / "none")
    names = [Path(name).relative_to(tmp_path) for name, _ in iterate_images(tmp_path / "photos")]
    assert names == [Path("photos/broken.png"), Path("photos/link/a.png")]


def test_a_large_folder_is_not_listed_before_the_first_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").touch()
    scanned: list[str] = []
    scandir = os.scandir

    def scan(path: str) -> Any:
        scanned.append(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    next(iterate_images(tmp_path))
    assert len(scanned) == 2


def test_an_empty_text_is_not_the_current_folder() -> None:
    assert [name for name, _ in iterate_images("")] == [""]


def test_a_folder_has_the_images_that_fit_reads(tmp_path: Path) -> None:
    names = [
        "a/1.png",
        "a/B/2.JPEG",
        "a/.x/3.png",
        "@eaDir/4.png",
        "c/._5.png",
        "c/6.heic",
        "7.tif",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    read_by_fit = list_folder(str(tmp_path)).paths
    assert sorted(name for name, _ in iterate_images(tmp_path)) == sorted(read_by_fit)
    assert {Path(path).name for path in read_by_fit} == {"1.png", "2.JPEG", "7.tif"}
