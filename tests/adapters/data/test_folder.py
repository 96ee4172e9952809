import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.data.readers import create_reader

from headkit.adapters.data.open import count, open_data
from headkit.adapters.errors import DataError
from headkit.adapters.images import SUFFIXES

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
