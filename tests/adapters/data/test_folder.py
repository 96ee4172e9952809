import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.data.readers import create_reader

from headkit.adapters.data.open import count, open_data
from headkit.adapters.errors import DataError
from headkit.adapters.images.formats import SUFFIXES

from .listings import open_train, write_images


def test_folder_has_the_classes_targets_and_order_of_timm(tmp_path: Path) -> None:
    elsewhere = write_images(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
    root = write_images(
        tmp_path / "images",
        *(f"c{number}/{image}.png" for number in (1, 2, 10) for image in ("b2", "b10", "B1", "a")),
        "c3/.hidden.jpg",
        "c3/UPPER.JPG",
        "c3/b.JpEg",
        "c3/.jpg",
        "c3/no image.txt",
        "c3/notes.gif.txt",
        "with space/a #1%20.jpg",
        "with space/ü 猫.jpg",
        "Ünïcode 猫/1.jpg",
        ".hidden/1.jpg",
        "kind/one/1.jpg",
        "kind/one.jpg",
        "kind/two/5/1.jpg",
        "other/one/2.jpg",
        "1/1.png",
        "a/x1.png",
        "a/5.png",
        "a1/x.png",
        "a.jpg/x.jpg",
    )
    (root / "linked").symlink_to(elsewhere)
    (root / "c1" / "dangling.jpg").symlink_to(tmp_path / "none")
    dataset = open_train(root, class_from="parent")
    reader = create_reader("", root=str(root))
    shown = [(p, t) for p, t in reader.samples if "/." not in p.removeprefix(str(root))]
    assert len(reader.samples) - len(shown) == 2  # timm reads hidden files
    names = [name for name in reader.class_to_idx if not name.startswith(".")]
    targets = [names.index(Path(path).parent.name) for path, _ in shown]
    assert dataset.paths == tuple(path for path, _ in shown)
    assert dataset.targets is not None
    assert dataset.targets.dtype == np.int64
    assert dataset.targets.tolist() == targets
    assert list(dataset.label_names) == names
    assert dataset.task == "multiclass"
    assert count(dataset) == len(shown)


def test_images_of_all_formats_are_listed(tmp_path: Path) -> None:
    names = [f"1{suffix}" for suffix in sorted(SUFFIXES)]
    root = write_images(tmp_path, *(f"cat/{name}" for name in names), "dog/1.jpg", "dog/1.jp2")
    paths = [str(root / "cat" / name) for name in names]
    assert open_train(root).paths == (*paths, str(root / "dog" / "1.jpg"))


def test_names_that_timm_sorts_at_random_have_a_fixed_order(tmp_path: Path) -> None:
    root = write_images(tmp_path, *(f"{name}/1.jpg" for name in ("a", "A", "01", "1", "b")))
    assert open_train(root).label_names == ("01", "1", "A", "a", "b")


def test_digits_that_are_no_numbers_are_letters(tmp_path: Path) -> None:
    root = write_images(tmp_path, "²/1.jpg", "m²/①.jpg", "٣/1.jpg", f"{'7' * 200}/1.jpg")
    with pytest.raises(ValueError, match="invalid literal"):
        create_reader("", root=str(root))
    assert open_train(root).label_names == ("٣", "7" * 200, "m²", "²")


def test_link_to_a_folder_above_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog" / "itself").symlink_to(root / "dog" / "itself")
    dataset = open_train(root)
    assert dataset.paths == (str(root / "cat" / "1.jpg"), str(root / "dog" / "1.jpg"))
    assert f"skipped {root / 'cat' / 'loop'}: it links back to a folder above it" in caplog.text


def test_paths_start_with_the_folder_as_the_caller_wrote_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert open_train(Path("images")).paths == ("images/cat/1.jpg", "images/dog/1.jpg")


def test_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # a file mode would not stop root
        if path.endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read the folder .*dog: Permission denied"):
        open_data(tmp_path)


def test_class_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.jpg")
    try:
        write_images(tmp_path, os.fsdecode(b"caf\xe9/1.jpg"))
    except OSError:
        pytest.skip("the file system allows only UTF-8")
    with pytest.raises(DataError, match="whose name is not UTF-8: rename it"):
        open_data(tmp_path)


def test_train_and_val_folders_are_used_unless_val_is_given(tmp_path: Path) -> None:
    write_images(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "train/emu/1.jpg")
    write_images(tmp_path, "validation/dog/2.jpg", "validation/emu/2.jpg")
    train, val = open_data(tmp_path)
    assert val is not None
    assert train.label_names == val.label_names == ("cat", "dog", "emu")
    assert val.targets is not None
    assert val.targets.tolist() == [1, 2]  # cat is not validated: fine
    train, val = open_data(tmp_path / "train", tmp_path / "validation")
    assert val is not None
    assert val.targets is not None
    assert val.targets.tolist() == [1, 2]


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images in .*: expected one folder per class"):
        open_data(tmp_path)
    with pytest.raises(DataError, match=r"no data in .*none: no such folder or file; expected a"):
        open_data(tmp_path / "none")
    (tmp_path / "file.zip").touch()
    with pytest.raises(DataError, match=r"no data in .*file.zip: it is a file; expected a folder"):
        open_data(tmp_path / "file.zip")
    write_images(tmp_path, "cat/1.jpg")
    with pytest.raises(DataError, match="has one class, cat: a classifier needs at least two"):
        open_data(tmp_path)
    write_images(tmp_path, "dog/1.jpg", "loose.jpg")
    with pytest.raises(DataError, match=r"outside the class folders, such as .*loose\.jpg"):
        open_data(tmp_path)
    (tmp_path / "loose.jpg").unlink()
    (tmp_path / "purple").mkdir()
    (tmp_path / ".git").mkdir()
    with pytest.raises(
        DataError, match=r"has class folders without images: purple; add images or remove"
    ):
        open_data(tmp_path)


def test_validation_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    train = write_images(tmp_path / "a", "cat/1.jpg", "dog/1.jpg")
    val = write_images(tmp_path / "b", "cat/1.jpg", "emu/1.jpg", "fox/1.jpg")
    with pytest.raises(
        DataError, match="has classes that the training data does not have: emu, fox"
    ):
        open_data(train, val)
    with pytest.raises(DataError, match=r"no data in .*none: no such folder or file"):
        open_data(train, tmp_path / "none")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_folder_is_only_multiclass(tmp_path: Path, task: Any) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    assert open_train(tmp_path, task="multiclass").task == "multiclass"
    with pytest.raises(
        DataError, match=f"multiclass; {task} needs a CSV file with the columns path,"
    ):
        open_data(tmp_path, task=task)


def test_unknown_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task is 'ranking', expected one of multiclass,"):
        open_data(tmp_path, task="ranking")  # type: ignore[arg-type]


def test_labels_with_one_image_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: Callable[..., Path]
) -> None:
    root = write_images(tmp_path / "images", "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "emu/1.jpg")
    open_train(root)
    assert "2 labels of" in caplog.text
    assert "which is used for training, so the metrics do not cover them: dog, emu" in caplog.text
    caplog.clear()
    open_data(root, root)
    assert not caplog.text
    lines = (f"{i}.jpg,rare{i}|usual" for i in range(7))
    open_train(table("path,label", *lines))
    assert "7 labels of" in caplog.text
    assert caplog.text.rstrip().endswith("rare0, rare1, rare2, rare3, rare4 and 2 more")


SYSTEM_FOLDERS = [
    ".ipynb_checkpoints",
    "__MACOSX",
    ".thumbnails",
    "@eaDir",
    ".git",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
    "__pycache__",
    ".AppleDouble",
]


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_hidden_and_system_folders_are_no_classes(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg", f"{name}/1.jpg", f"{name}/cat/2.jpg")
    write_images(tmp_path, f"cat/{name}/3.jpg")
    dataset = open_train(tmp_path)
    assert dataset.label_names == ("cat", "dog")
    assert count(dataset) == 2
    (skipped,) = dataset.skipped
    assert (skipped.reason, skipped.count) == ("in a hidden or system folder", 3)
    assert all(name in example for example in skipped.examples)


@pytest.mark.parametrize("name", ["._1.jpg", ".DS_Store", "Thumbs.db", ".1.png", "desktop.ini"])
def test_hidden_and_system_files_are_no_images(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg", f"cat/{name}", name)
    dataset = open_train(tmp_path)
    assert count(dataset) == 2
    assert [(s.reason, s.count) for s in dataset.skipped] == [("hidden or system file", 2)]


def test_files_that_are_not_read_are_counted_by_suffix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    others = ("a.heic", "b.HEIC", "c.avif", "d.npy", "e.txt", "f", "g.jpg~", "h.001", "i.csv")
    write_images(tmp_path, "cat/1.jpg", "dog/1.WEBP", *(f"cat/{name}" for name in others))
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat" / "loop")
    dataset = open_train(tmp_path)
    assert count(dataset) == 2
    assert {one.reason: one.count for one in dataset.skipped} == {
        "format .heic": 2,
        "format .avif": 1,
        "format .npy": 1,
        "not an image: .txt": 1,
        "not an image: .csv": 1,
        "no suffix": 1,
        "unusual suffix": 2,
        "link to a folder above it": 1,
        "link that leads nowhere": 1,
    }
    assert dataset.skipped[0].examples == tuple(
        str(tmp_path / "cat" / name) for name in ("a.heic", "b.HEIC")
    )
    assert "skipped images of" in caplog.text
    assert "formats that are not read: 2 .heic, 1 .avif, 1 .npy, such as" in caplog.text


def test_named_pipe_is_no_image(tmp_path: Path) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    if not hasattr(os, "mkfifo"):
        pytest.skip("the system has no named pipes")
    os.mkfifo(tmp_path / "cat" / "2.jpg")
    (tmp_path / "cat" / "3.jpg").symlink_to(tmp_path / "cat" / "2.jpg")
    dataset = open_train(tmp_path)
    assert count(dataset) == 2
    assert [(s.reason, s.count) for s in dataset.skipped] == [("not a regular file", 2)]


def test_folder_of_other_formats_is_refused_with_what_was_found(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"{c}/{i}.heic" for c in "ab" for i in range(6)), "a/notes.txt")
    with pytest.raises(DataError, match=r"found 12 \.heic, 1 \.txt; .* that is read \(.*\.bmp, "):
        open_data(tmp_path)
    write_images(tmp_path, "a/1.jpg", "c/1.jpg")
    with pytest.raises(DataError, match=r"class folders without images: b \(6 \.heic\); add"):
        open_data(tmp_path)


def test_class_without_validation_images_is_counted(tmp_path: Path) -> None:
    train = write_images(tmp_path / "train", "cat/1.jpg", "dog/1.jpg")
    val = write_images(tmp_path / "val", "cat/2.jpg")
    (val / "dog").mkdir()
    _, validation = open_data(train, val)
    assert validation is not None
    assert [(s.reason, s.count) for s in validation.skipped] == [("class folder without images", 1)]


Tree = tuple[str, ...]
TWO_READINGS: dict[str, tuple[Tree, str]] = {
    "years below classes": (
        ("cat/2023/1.jpg", "cat/2024/2.jpg", "dog/2023/3.jpg"),
        "the folder 2023 appears under several parents, as in cat/2023 and dog/2023",
    ),
    "years above classes": (
        ("2023/cat/1.jpg", "2023/dog/2.jpg", "2024/cat/3.jpg"),
        "the folder cat appears under several parents, as in 2023/cat and 2024/cat",
    ),
    "each class in one year": (
        ("2023/cat/1.jpg", "2024-05/dog/2.jpg"),
        "folders such as 2023 look like years or batches",
    ),
    "batches": (("batch_1/cat/1.jpg", "batch_2/dog/1.jpg"), "folders such as batch_1 look like"),
    "hard images": (
        ("cat/hard/1.jpg", "cat/2.jpg", "dog/3.jpg"),
        "images of cat lie at different depths, as in cat/… and cat/hard/…",
    ),
    "two depths": (
        ("cat/a/1.jpg", "cat/b/c/2.jpg", "dog/3.jpg"),
        "images of cat lie at different depths, as in cat/a/… and cat/b/c/…",
    ),
    "class inside another": (
        ("cat/1.jpg", "pets/cat/2.jpg", "dog/3.jpg"),
        "the folder cat appears under several parents, as in cat and pets/cat",
    ),
    "batches of one name": (
        ("cat/batch1/1.jpg", "cat/batch2/1.jpg", "dog/batch1/1.jpg"),
        "the folder batch1 appears under several parents",
    ),
}


@pytest.mark.parametrize("case", TWO_READINGS)
def test_tree_with_two_readings_stops_and_names_the_option(tmp_path: Path, case: str) -> None:
    tree, reason = TWO_READINGS[case]
    write_images(tmp_path, *tree)
    with pytest.raises(DataError) as raised:
        open_data(tmp_path)
    message = str(raised.value)
    assert reason in message
    assert "pass class_from='top' (--class-from top) if the classes are" in message
    for class_from, place in (("top", 0), ("parent", -2)):
        dataset = open_train(tmp_path, class_from=class_from)
        assert dataset.targets is not None
        labels = {
            Path(path).relative_to(tmp_path).as_posix(): dataset.label_names[target]
            for path, target in zip(dataset.paths or (), dataset.targets, strict=True)
        }
        assert labels == {path: path.split("/")[place] for path in tree}


@pytest.mark.parametrize(
    "tree",
    [
        ("cat/2023/1.jpg", "dog/2024/2.jpg"),
        ("cat/a/1.jpg", "cat/b/2.jpg", "dog/c/3.jpg"),
        ("cat/1.jpg", "dog/deep/deeper/2.jpg"),
    ],
)
def test_class_is_the_folder_under_the_root_and_deeper_folders_are_order(
    tmp_path: Path, tree: Tree, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, *tree)
    assert open_train(tmp_path).label_names == ("cat", "dog")
    assert (
        "only organize the images: pass class_from='parent' (--class-from parent) if" in caplog.text
    )


def test_years_that_hold_images_are_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "1990/1.jpg", "2000/1.jpg")
    assert open_train(tmp_path).label_names == ("1990", "2000")


def test_wrapped_folder_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "PetImages/cat/1.jpg", "PetImages/dog/1.jpg")
    with pytest.raises(DataError, match=r"one class, PetImages: .* pass .*/PetImages if the fold"):
        open_data(tmp_path)
    assert open_train(tmp_path, class_from="parent").label_names == ("cat", "dog")


def test_images_beside_a_table_name_the_table(tmp_path: Path) -> None:
    write_images(tmp_path, "1.jpg", "2.jpg", "labels.csv")
    with pytest.raises(
        DataError, match=r"outside the class folders.*, or pass .*labels\.csv if it"
    ):
        open_data(tmp_path)


def test_options_that_do_not_apply_are_refused(tmp_path: Path, table: Callable[..., Path]) -> None:
    root = write_images(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    csv = table("file,label", "0.jpg,cat", "1.jpg,dog")
    with pytest.raises(DataError, match=r"class_from \(--class-from\) is 'top', but .*labels.csv"):
        open_data(csv, class_from="top")
    with pytest.raises(
        DataError, match=r"path_column \(--path-column\) is 'a', but .*images is no"
    ):
        open_data(root, path_column="a")
    with pytest.raises(ValueError, match="class_from is 'deep', expected 'top' or 'parent'"):
        open_data(root, class_from="deep")  # type: ignore[arg-type]
    _, val = open_data(root, csv, class_from="top", path_column="file")  # each has its use
    assert val is not None
    assert count(val) == 2
