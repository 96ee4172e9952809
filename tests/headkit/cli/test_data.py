import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with the splits train, valid and test of small images in four formats."""
    colours = {"dark": 20, "bright": 230}
    for split, images in {"train": 8, "valid": 3, "test": 2}.items():
        for label, grey in colours.items():
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for number in range(images):
                suffix = ("png", "bmp", "tif", "webp")[number % 4]
                pixels = (grey, grey + number, grey)
                Image.new("RGB", (32, 32), pixels).save(folder / f"{number}.{suffix}")
    (tmp_path / "photos" / "train" / "dark" / "9.heic").touch()
    return tmp_path / "photos"


def test_data_shows_classes_splits_formats_and_what_is_skipped(run: Run, photos: Path) -> None:
    status, out, err = run("data", photos)
    assert status == 0, err
    assert "multiclass, 2 classes" in out
    for line in (
        "train           16        2  train",
        "validation       6        2  valid",
        "test             4        2  test (not used by fit)",
        "bright      8           3     2",
        "dark        8           3     2",
        "formats: .png 8, .bmp 8, .tif 6, .webp 4",
        "skipped: 1 format .heic, such as train/dark/9.heic",
    ):
        assert line in out, out
    assert err == ""

    status, out, err = run("data", photos, "--json")
    described = json.loads(out)
    assert described["splits"]["val"]["images_per_class"] == {"bright": 3, "dark": 3}
    assert [one["reason"] for one in described["skipped"]] == ["format .heic"]


def test_fit_trains_and_validates_on_what_data_shows(
    run: Run, photos: Path, small_weights: Path, tmp_path: Path
) -> None:
    head = tmp_path / "head.safetensors"
    options = ("--backbone", "test_resnet", "--weights", small_weights, "--workers", 0)
    status, out, err = run("fit", *options, "--data", photos, "--out", head, "--json")
    assert status == 0, err
    result = json.loads(out)
    assert result["num_train"] == 16
    assert result["num_val"] == 6
    assert "skipped images of" in err


def test_options_of_the_data_reach_fit(
    run: Run, photos: Path, small_weights: Path, tmp_path: Path
) -> None:
    paths = sorted((photos / "train").rglob("*.*"))
    rows = [f"{p},{p.parent.name}" for p in paths if p.suffix != ".heic"]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["where,kind,x", *(f"{row},1" for row in rows), ""]))
    options = ("--backbone", "test_resnet", "--weights", small_weights, "--workers", 0)
    columns = ("--path-column", "where", "--label-column", "kind")
    head = tmp_path / "head.safetensors"
    status, out, err = run("fit", *options, *columns, "--data", table, "--out", head, "--json")
    assert status == 0, err
    assert json.loads(out)["num_train"] == json.loads(out)["num_val"] == 16
    refused, _, err = run("data", table, "--label-column", "none")
    assert refused == 2
    assert "label_column (--label-column) is 'none'" in err


def test_data_with_two_readings_stop_with_one_line(run: Run, tmp_path: Path) -> None:
    for name in ("2023/cat/1.png", "2023/dog/2.png", "2024/cat/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    status, out, err = run("data", tmp_path)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "--class-from top" in err
    status, out, _ = run("data", tmp_path, "--class-from", "parent")
    assert status == 0
    assert "multiclass, 2 classes" in out
    assert "class: the folder that holds the image" in out
