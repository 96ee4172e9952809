import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import headkit
from headkit.adapters.data.summary import MOST_COLUMNS, MOST_LINES

from .listings import write_images

Write = Callable[..., Path]


def test_summary_counts_what_an_independent_listing_finds(tmp_path: Path) -> None:
    names = [f"{c}/{i}.{s}" for c in ("cat", "dog") for i, s in enumerate(("jpg", "PNG", "webp"))]
    for split in ("train", "valid", "test"):
        write_images(tmp_path / split, *names, "cat/a.heic", "dog/.DS_Store")
    write_images(tmp_path, "train/dog/more.jpg", "README.txt", "__MACOSX/train/cat/0.jpg")
    summary = headkit.describe_data(tmp_path)
    assert summary.task == "multiclass"
    assert summary.label_names == ("cat", "dog")
    assert list(summary.splits) == ["train", "val", "test"]
    folders = {"train": "train", "val": "valid", "test": "test"}
    for split, one in summary.splits.items():
        images = [p for p in (tmp_path / folders[split]).rglob("*") if p.name[0] != "."]
        images = [p for p in images if p.is_file() and p.suffix != ".heic"]
        assert one.images == len(images)
        assert one.images_per_class == Counter(path.parent.name for path in images)
        assert one.formats == Counter(path.suffix.lower() for path in images)
        assert one.used == (split != "test")
    assert {one.reason: one.count for one in summary.skipped} == {
        "format .heic": 3,
        "hidden or system file": 3,
        "in a hidden or system folder": 1,
        "not an image: .txt": 1,
    }
    assert json.loads(json.dumps(summary.to_json()))["splits"]["train"]["images"] == 7


def test_text_of_a_summary_fits_on_one_screen(tmp_path: Path) -> None:
    for number in range(1000):
        write_images(tmp_path / "train", f"{'long name ' * 12}{number}/1.jpg")
        write_images(tmp_path / "val", f"{'long name ' * 12}{number}/1.jpg")
    write_images(tmp_path, "test/1.jpg", "other/1.jpg")
    write_images(tmp_path, *(f"train/{'long name ' * 12}0/{i}.x{i}" for i in range(30)))
    write_images(tmp_path, *(f"train/{'long name ' * 12}0/{i}.heic" for i in range(30)))
    text = str(headkit.describe_data(tmp_path))
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES == 24
    assert max(map(len, lines)) <= MOST_COLUMNS == 100
    assert "multiclass, 1000 classes" in lines[0]
    assert "more; training images per class: 1 (" in text
    assert "skipped: 30 format .heic, such as" in text
    assert "skipped: 29 more, for 29 other reasons (--json shows all)" in text


@pytest.mark.skipif(os.name == "nt", reason="Windows does not allow such names")
def test_names_cannot_write_on_the_screen(tmp_path: Path) -> None:
    write_images(tmp_path, "a\nb\x1b[31m/1.jpg", "c/1.jpg", "c/d\r.heic")
    text = str(headkit.describe_data(tmp_path))
    assert "a\\nb\\x1b[31m" in text
    assert text.replace("\n", "").isprintable()


def test_summary_of_a_table_names_its_columns(table: Write) -> None:
    rows = [f"{i}.jpg;3;{'ab'[i % 2]};{i > 7}" for i in range(10)]
    summary = headkit.describe_data(table("file;width;class;is_valid", *rows))
    assert summary.facts == {
        "delimiter": "a semicolon",
        "path column": "file",
        "label column": "class",
        "split column": "is_valid",
        "columns that are not used": "width",
    }
    assert summary.splits["train"].images_per_class == {"a": 4, "b": 4}
    assert summary.splits["val"].images_per_class == {"a": 1, "b": 1}
    text = str(summary)
    assert "path column: file; label column: class; split column: is_valid" in text.replace(
        "\n", " "
    )


def test_summary_of_numbers_shows_their_ranges(table: Write) -> None:
    ages = np.array([3, 7.5, 20], np.float32)
    path = table("path,age", *(f"{i}.jpg,{age}" for i, age in enumerate(ages)))
    summary = headkit.describe_data(path, task="regression")
    assert summary.splits["train"].ranges["age"] == pytest.approx((3, ages.mean(), 20))
    assert "age          3  10.1667       20" in str(summary)
    assert "cross-validation on train" in str(summary)


def test_images_of_a_table_in_other_formats_are_named(table: Write, tmp_path: Path) -> None:
    write_images(tmp_path, "a.heic", "b.heic")
    lines = ("path,label", "a.heic,a", "b.heic,b", "0.jpg,a", "1.jpg,b")
    (warning,) = headkit.describe_data(table(*lines)).warnings
    assert "2 images of" in warning
    assert "in formats that are not read, such as" in warning


def test_data_that_fit_refuses_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/hard/1.jpg", "cat/2.jpg", "dog/3.jpg")
    with pytest.raises(headkit.DataError, match=r"pass class_from='top' \(--class-from top\)"):
        headkit.describe_data(tmp_path)
    assert headkit.describe_data(tmp_path, class_from="top").label_names == ("cat", "dog")
