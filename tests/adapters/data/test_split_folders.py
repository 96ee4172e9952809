from pathlib import Path

import pytest

from headkit.adapters.data.open import open_data
from headkit.adapters.data.splits import parse_split, split_of
from headkit.adapters.errors import DataError

from .listings import open_train, write_images


def _write_splits(root: Path, *splits: str) -> Path:
    for split in splits:
        write_images(root / split, f"cat/{split}1.jpg", f"dog/{split}2.jpg", f"dog/{split}3.jpg")
    return root


def _names(paths: tuple[str, ...] | None) -> list[str]:
    return sorted(Path(path).name for path in paths or ())


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "valid", "test"),  # Roboflow
        ("train", "val", None),  # torchvision, ImageNet
        ("Train", "Validation", "Test"),
        ("training", "validation", "evaluation"),  # Kaggle, Food-11
        ("TRAIN", "DEV", "TEST"),
        ("train2017", "val2017", None),
        ("seg_train", "seg_val", "seg_test"),
        ("train_images", "dev-images", None),
        ("TrainSet", "ValidSet", "TestSet"),
    ],
)
def test_validation_split_validates_and_test_split_does_not(
    tmp_path: Path, train: str, val: str, test: str | None
) -> None:
    _write_splits(tmp_path, train, val, *([test] if test else []))
    found, validation = open_data(tmp_path)
    assert validation is not None
    assert found.label_names == validation.label_names == ("cat", "dog")
    assert _names(found.paths) == [f"{train}{i}.jpg" for i in (1, 2, 3)]
    assert _names(validation.paths) == [f"{val}{i}.jpg" for i in (1, 2, 3)]
    skipped = [(one.reason, one.count) for one in found.skipped]
    assert skipped == ([("in the split test", 3)] if test else [])


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Training", "Testing"), ("training_set", "test_set"), ("Train", "Test")],
)
def test_test_split_is_not_used_for_validation_in_silence(
    tmp_path: Path, train: str, test: str, caplog: pytest.LogCaptureFixture
) -> None:
    _write_splits(tmp_path, train, test)
    found = open_train(tmp_path)
    assert _names(found.paths) == [f"{train}{i}.jpg" for i in (1, 2, 3)]
    assert f"{test}, is not used: cross-validation" in caplog.text
    assert "pass test='split' (--test split)" in caplog.text
    _, val = open_data(tmp_path, tmp_path / test)
    assert val is not None
    assert _names(val.paths) == [f"{test}{i}.jpg" for i in (1, 2, 3)]


def test_caller_chooses_among_the_splits(tmp_path: Path) -> None:
    _write_splits(tmp_path, "train", "valid", "test")
    train, val = open_data(tmp_path, tmp_path / "test")
    assert val is not None
    assert _names(val.paths) == ["test1.jpg", "test2.jpg", "test3.jpg"]
    assert [(one.reason, one.count) for one in train.skipped] == [("in the split val", 3)]
    other = _write_splits(tmp_path / "other", "b") / "b"
    with pytest.raises(DataError, match=r"has its own validation split, .*valid, but val is"):
        open_data(tmp_path, other)
    _, val = open_data(other, tmp_path)  # a folder of splits: its validation split
    assert val is not None
    assert _names(val.paths) == ["valid1.jpg", "valid2.jpg", "valid3.jpg"]


def test_train_folder_alone_is_the_training_split(tmp_path: Path) -> None:
    _write_splits(tmp_path, "train")
    (tmp_path / "README.md").touch()
    (tmp_path / ".git").mkdir()
    assert open_train(tmp_path).label_names == ("cat", "dog")


def test_unlabelled_test_images_and_stray_folders_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write_splits(tmp_path, "train", "val")
    write_images(tmp_path, "test/1.jpg", "test/2.jpg", "test/notes.txt", "more/3.jpg", "4.png")
    train, _ = open_data(tmp_path)
    assert {one.reason: one.count for one in train.skipped} == {
        "in the split test": 2,
        "not an image: .txt": 1,
        "image outside the folders of the splits": 2,
    }
    assert "images outside the folders of the splits" in caplog.text


def test_classes_that_are_called_like_splits_are_classes(tmp_path: Path) -> None:
    root = write_images(tmp_path / "a", "bus/1.jpg", "car/1.jpg", "train/1.jpg")
    assert open_train(root).label_names == ("bus", "car", "train")
    root = write_images(tmp_path / "b", "bus/1.jpg", "train/1.jpg", "test/1.jpg")
    assert open_train(root).label_names == ("bus", "test", "train")
    root = write_images(tmp_path / "c", "training shoes/1.jpg", "test tube/1.jpg")
    assert open_train(root).label_names == ("test tube", "training shoes")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "val", "validation"), "has 2 folders for the split val: val, validation"),
        (("train", "Training", "test"), "has 2 folders for the split train"),
        (("valid", "test"), "has the splits test, valid, but no training split"),
    ],
)
def test_splits_that_are_not_clear_are_refused(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    _write_splits(tmp_path, *folders)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)


def test_splits_without_class_folders_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "train/1.jpg", "test/2.jpg")
    with pytest.raises(DataError, match="train has no class folders: expected one folder per"):
        open_data(tmp_path)
    table = tmp_path / "train" / "_classes.csv"  # Roboflow
    table.write_text("filename, cat, dog\n1.jpg, 1, 1\n")
    with pytest.raises(DataError, match=r"path,label; pass .*train/_classes.csv if it has the lab"):
        open_data(tmp_path)
    assert open_train(table).task == "multilabel"


@pytest.mark.parametrize("class_from", [None, "top"])
def test_splits_inside_the_classes_are_refused(tmp_path: Path, class_from: str | None) -> None:
    write_images(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg")
    with pytest.raises(DataError, match=r"splits inside its class folders, such as cat/test: exp"):
        open_data(tmp_path, class_from=class_from)  # type: ignore[arg-type]


def test_splits_in_a_wrapping_folder_are_named(tmp_path: Path) -> None:
    _write_splits(tmp_path / "images", "train", "val")
    with pytest.raises(DataError, match=r"has the splits train, val: pass .*/images$"):
        open_data(tmp_path)


def test_names_of_splits() -> None:
    for name in ("train", "Training_Set", "TRAIN", "trn", "train-images", "train2017", "trainval"):
        assert split_of(name) == "train", name
    for name in ("val", "valid", "Validation Set", "dev", "VALID", "valset"):
        assert split_of(name) == "val", name
    for name in ("test", "Testing", "test_set", "eval", "TestData"):
        assert split_of(name) == "test", name
    for name in (
        "trains",
        "cat",
        "",
        "train_test",
        "test1",
        "training shoes",
        "invalid",
        "contest",
    ):
        assert split_of(name) is None, name
    assert parse_split("asl_alphabet_train") == ("train", ("asl", "alphabet"))
