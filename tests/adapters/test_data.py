import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from headkit.adapters.data import Source, count, holdout, open_data, open_image
from headkit.adapters.errors import DataError, DependencyMissing
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import create_reader


def write_images(root: Path, *names: str) -> Path:
    """Files that have the names of images and are empty."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Write a CSV beside the empty images ``0.jpg`` to ``9.jpg``."""
    write_images(tmp_path, *(f"{number}.jpg" for number in range(10)))

    def write(*lines: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join([*lines, ""]).encode(encoding))
        return path

    return write


def opened(data: Path, **options: Any) -> Source:
    """The training split of data that have no other."""
    train, val = open_data(data, **options)
    assert val is None
    return train


# Folders


def test_folder_gives_the_classes_targets_and_order_of_timm(tmp_path: Path) -> None:
    elsewhere = write_images(tmp_path / "elsewhere", "1.jpg", "deep/2.jpg")
    root = write_images(
        tmp_path / "images",
        *(f"c{number}/{image}.png" for number in (1, 2, 10) for image in ("b2", "b10", "B1", "a")),
        "c3/.hidden.jpg",
        "c3/UPPER.JPG",
        "c3/b.JpEg",
        "c3/.jpg",
        "c3/no image.txt",
        "c3/animation.gif",
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
    source = opened(root)
    reader = create_reader("", root=str(root))
    assert source.paths == tuple(path for path, _ in reader.samples)
    assert source.targets is not None
    assert source.targets.dtype == np.int64
    assert source.targets.tolist() == [target for _, target in reader.samples]
    assert {name: i for i, name in enumerate(source.label_names)} == reader.class_to_idx
    assert source.task == "multiclass"
    assert count(source) == len(reader.samples)


def test_names_that_timm_sorts_at_random_have_a_fixed_order(tmp_path: Path) -> None:
    root = write_images(tmp_path, *(f"{name}/1.jpg" for name in ("a", "A", "01", "1", "b")))
    assert opened(root).label_names == ("01", "1", "A", "a", "b")


def test_digits_that_are_no_numbers_are_letters(tmp_path: Path) -> None:
    root = write_images(tmp_path, "²/1.jpg", "m²/①.jpg", "٣/1.jpg", f"{'7' * 200}/1.jpg")
    with pytest.raises(ValueError, match="invalid literal"):
        create_reader("", root=str(root))
    assert opened(root).label_names == ("٣", "7" * 200, "m²", "²")


def test_link_to_a_folder_above_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = write_images(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    (root / "cat" / "loop").symlink_to(root)
    (root / "dog" / "itself").symlink_to(root / "dog" / "itself")
    source = opened(root)
    assert source.paths == (str(root / "cat" / "1.jpg"), str(root / "dog" / "1.jpg"))
    assert f"{root / 'cat' / 'loop'} leads back to a folder above it" in caplog.text


def test_paths_are_as_the_folder_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert opened(Path("images")).paths == ("images/cat/1.jpg", "images/dog/1.jpg")


def test_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    scandir = os.scandir

    def refuse(path: str) -> Any:  # root may read everything, so that a mode would not do
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
        pytest.skip("file system allows UTF-8 alone")
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


def test_folders_without_what_is_needed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images in .*: expected one folder per class"):
        open_data(tmp_path)
    with pytest.raises(DataError, match=r"no data in .*none: no such folder or file; expected a"):
        open_data(tmp_path / "none")
    (tmp_path / "file.txt").touch()
    with pytest.raises(DataError, match=r"no data in .*file.txt: it is a file; expected a folder"):
        open_data(tmp_path / "file.txt")
    write_images(tmp_path, "cat/1.jpg")
    with pytest.raises(DataError, match="has one class, cat: a classifier needs at least two"):
        open_data(tmp_path)
    write_images(tmp_path, "dog/1.jpg", "loose.jpg")
    with pytest.raises(DataError, match=r"beside the class folders, such as .*loose\.jpg"):
        open_data(tmp_path)
    (tmp_path / "loose.jpg").unlink()
    (tmp_path / "purple").mkdir()
    (tmp_path / ".git").mkdir()
    with pytest.raises(DataError, match=r"class purple of .* has no image: add images or remove"):
        open_data(tmp_path)


def test_validation_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    train = write_images(tmp_path / "a", "cat/1.jpg", "dog/1.jpg")
    val = write_images(tmp_path / "b", "cat/1.jpg", "emu/1.jpg", "fox/1.jpg")
    with pytest.raises(DataError, match="has the class emu, fox, which the training data lacks"):
        open_data(train, val)
    with pytest.raises(DataError, match=r"no data in .*none: no such folder or file"):
        open_data(train, tmp_path / "none")


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_folder_is_multiclass_alone(tmp_path: Path, task: Any) -> None:
    write_images(tmp_path, "cat/1.jpg", "dog/1.jpg")
    assert opened(tmp_path, task="multiclass").task == "multiclass"
    with pytest.raises(DataError, match=f"multiclass; {task} needs a CSV with the columns path,"):
        open_data(tmp_path, task=task)


def test_task_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task is 'ranking', expected one of multiclass,"):
        open_data(tmp_path, task="ranking")  # type: ignore[arg-type]


def test_labels_with_one_image_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: Callable[..., Path]
) -> None:
    root = write_images(tmp_path / "images", "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "emu/1.jpg")
    opened(root)
    assert "2 labels of" in caplog.text
    assert "which stays in training, so that they are not validated: dog, emu" in caplog.text
    caplog.clear()
    open_data(root, root)
    assert not caplog.text
    lines = (f"{i}.jpg,rare{i}|usual" for i in range(7))
    opened(table("path,label", *lines))
    assert "7 labels of" in caplog.text
    assert caplog.text.rstrip().endswith("rare0, rare1, rare2, rare3, rare4 and 2 more")


# CSV


def test_csv_gives_classes_in_the_order_of_folders(table: Callable[..., Path]) -> None:
    path = table("path,label", "0.jpg,c10", "1.jpg,c9", "2.jpg, C1 ", "3.jpg,c9")
    source = opened(path)
    assert source.task == "multiclass"
    assert source.label_names == ("C1", "c9", "c10")
    assert source.targets is not None
    assert source.targets.dtype == np.int64
    assert source.targets.tolist() == [2, 1, 0, 1]
    assert source.paths == tuple(str(path.parent / f"{i}.jpg") for i in range(4))
    assert count(source) == 4


def test_csv_paths_are_relative_to_it_or_absolute(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("sub/ü 猫.jpg", "sub/a, b #1%20.JPG")
    write_images(tmp_path, *names)
    table("path,label", f"{names[0]},a", f'"{names[1]}",b', f"{tmp_path / '0.jpg'},a")
    monkeypatch.chdir(tmp_path)
    source = opened(Path("labels.csv"))
    assert source.paths == (*names, str(tmp_path / "0.jpg"))


def test_separator_makes_a_csv_multilabel(table: Callable[..., Path]) -> None:
    source = opened(table("path,label", "0.jpg,b|a", "1.jpg,", "2.jpg,c", "3.jpg,a | a"))
    assert source.task == "multilabel"
    assert source.label_names == ("a", "b", "c")
    assert source.targets is not None
    assert source.targets.dtype == np.float32
    assert source.targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_multilabel_can_be_asked_for(table: Callable[..., Path]) -> None:
    source = opened(table("path,label", "0.jpg,a", "1.jpg,"), task="multilabel")
    assert source.label_names == ("a",)
    assert source.targets is not None
    assert source.targets.tolist() == [[1], [0]]


def test_regression_reads_one_column_of_numbers(table: Callable[..., Path]) -> None:
    source = opened(table("path,label", "0.jpg,-1.5", "1.jpg,2e3"), task="regression")
    assert source.label_names == ("label",)
    assert source.targets is not None
    assert source.targets.dtype == np.float32
    assert source.targets.tolist() == [[-1.5], [2000]]
    several = opened(table("path,label", "0.jpg,1|2", "1.jpg,3| 4"), task="regression")
    assert several.label_names == ("label_0", "label_1")
    assert several.targets is not None
    assert several.targets.tolist() == [[1, 2], [3, 4]]


def test_regression_reads_a_column_for_each_output(table: Callable[..., Path]) -> None:
    train = table("age,path,height", "1,0.jpg,2", "3,1.jpg,4")
    val = table("path,height,age", "2.jpg,6,5", name="val.csv")
    source, held = open_data(train, val, task="regression")
    assert source.label_names == ("age", "height")
    assert source.targets is not None
    assert source.targets.tolist() == [[1, 2], [3, 4]]
    assert held is not None
    assert held.targets is not None
    assert held.targets.tolist() == [[5, 6]]
    other = table("path,age,width", "2.jpg,6,5", name="other.csv")
    with pytest.raises(DataError, match=r"has the outputs age, width; the training data has"):
        open_data(train, other, task="regression")


def test_column_split_holds_both_splits(table: Callable[..., Path]) -> None:
    rows = ["0.jpg,train,b", "1.jpg,val,a", "2.jpg,TEST,b", "3.jpg,validation,a", "4.jpg,train,a"]
    path = table("path,split,label", *rows)
    train, val = open_data(path)
    assert val is not None
    assert train.label_names == val.label_names == ("a", "b")
    assert [Path(name).name for name in train.paths or ()] == ["0.jpg", "4.jpg"]
    assert [Path(name).name for name in val.paths or ()] == ["1.jpg", "2.jpg", "3.jpg"]
    assert train.targets is not None
    assert train.targets.tolist() == [1, 0]
    assert val.targets is not None
    assert val.targets.tolist() == [0, 1, 0]
    plain = table("path,label", "5.jpg,a", "6.jpg,b", name="plain.csv")
    _, val = open_data(plain, path)  # its validation lines alone
    assert val is not None
    assert count(val) == 3
    with pytest.raises(DataError, match=r"holds lines for validation, and .* is given too"):
        open_data(path, plain)


def test_folder_and_csv_validate_each_other(table: Callable[..., Path], tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    path = table("path,label", "0.jpg,dog", "1.jpg,cat")
    for data, val in ((root, path), (path, root)):
        train, held = open_data(data, val)
        assert held is not None
        assert train.label_names == held.label_names == ("cat", "dog")
    with pytest.raises(DataError, match="multiclass; multilabel needs a CSV"):
        open_data(path, root, task="multilabel")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_mark_blank_lines_and_line_ends_do_not_matter(
    tmp_path: Path, encoding: str, end: str
) -> None:
    write_images(tmp_path, "a.jpg", "b.jpg")
    path = tmp_path / "labels.CSV"
    path.write_bytes(end.join(["path, label,", "a.jpg,é,", "", "b.jpg,b,x"]).encode(encoding))
    assert opened(path).label_names == ("b", "é")


def test_same_line_again_counts_once(
    table: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    source = opened(table("path,label", "0.jpg,a", "1.jpg,b", "./0.jpg,a", "1.jpg,b"))
    assert count(source) == 2
    assert "names 2 images again with the same label, such as" in caplog.text
    assert "0.jpg in line 4: one line counts" in caplog.text


HEADER = "path,label"
REFUSED: list[tuple[str, list[str], str | None, str]] = [
    ("empty", [], None, r"labels.csv is empty: expected a first line with the columns path,label"),
    ("header", [HEADER], None, "names no image: there is nothing below its first line"),
    ("columns", ["image,class", "0.jpg,a"], None, "has the columns image, class in its first line"),
    ("no header", ["0.jpg,a", "1.jpg,b"], None, "has the columns 0.jpg, a in .* expected path,lab"),
    ("semicolons", ["path;label", "0.jpg;a"], None, r"has the columns path;label in its first"),
    ("outputs", ["path,age,size", "0.jpg,1,2"], None, "in columns of their own, the task is regr"),
    ("no outputs", ["path,split", "0.jpg,val"], "regression", "columns path, split .* expected"),
    ("twice", ["path,label,label", "0.jpg,a,b"], None, "has the column label twice"),
    ("cells", [HEADER, "0.jpg,a", "1.jpg,b,c"], None, r"line 3 has 3 columns, expected 2 \(path, "),
    ("quote", [HEADER, '"0.jpg,a', "1.jpg,b"], None, r"line 3 is no CSV: unexpected end of data"),
    ("path", [HEADER, "0.jpg,a", ",b"], None, "line 3 has no path"),
    ("one class", [HEADER, "0.jpg,a", "1.jpg,a"], None, "has one class, a: a classifier needs"),
    ("no label", [HEADER, "0.jpg,a", "1.jpg, "], None, "line 3 has no label; .* task multilabel"),
    ("no labels", [HEADER, "0.jpg,", "1.jpg,"], "multilabel", "has no label at all"),
    ("several", [HEADER, "0.jpg,a", "1.jpg,a|b"], "multiclass", r"line 3 has several labels, a\|b"),
    ("hole", [HEADER, "0.jpg,a||b"], None, r"line 2 has an empty label in 'a\|\|b'"),
    (
        "contradiction",
        [HEADER, "0.jpg,a", "1.jpg,b", "0.jpg,b"],
        None,
        r"lines 2 and 4 give .*0.jpg different labels: a and b \(several labels of one image go",
    ),
    (
        "leak",
        ["path,label,split", "0.jpg,a,train", "1.jpg,b,train", "0.jpg,a,val"],
        None,
        r"lines 2 and 4 put .*0.jpg both into training and into validation",
    ),
    ("split", ["path,label,split", "0.jpg,a,dev"], None, "line 2 has the split 'dev', expec"),
    ("no train", ["path,label,split", "0.jpg,a,val"], None, "has no line of the split train"),
    (
        "unknown",
        ["path,label,split", "0.jpg,a,train", "1.jpg,b,train", "2.jpg,c,val"],
        None,
        "has the class c, which the training data lacks",
    ),
    ("word", [HEADER, "0.jpg,1", "1.jpg,two"], "regression", "line 3 has 'two', expected a number"),
    ("blank", ["path,a,b", "0.jpg,1,"], "regression", "line 2 has '', expected a number"),
    ("underscore", [HEADER, "0.jpg,1_0"], "regression", "expected a number"),
    ("nan", [HEADER, "0.jpg,1", "1.jpg,NaN"], "regression", "line 3 has NaN, expected a finite"),
    ("inf", [HEADER, "0.jpg,-inf"], "regression", "line 2 has -inf, expected a finite float32"),
    ("large", [HEADER, "0.jpg,1e39"], "regression", "line 2 has 1e39, expected a finite float32"),
    ("lengths", [HEADER, "0.jpg,1|2", "1.jpg,3"], "regression", "line 3 has 1 numbers, expected 2"),
    (
        "missing",
        [HEADER, "0.jpg,a", *(f"none{i}.jpg,b" for i in range(5))],
        None,
        r"names 5 of 6 images that are not there: \S*none0.jpg \(line 3\), "
        r"\S*none1.jpg \(line 4\), \S*none2.jpg \(line 5\) and 2 more; paths are relative to /",
    ),
]


@pytest.mark.parametrize(("_", "lines", "task", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_csv_is_refused_with_file_and_line(
    table: Callable[..., Path], _: str, lines: list[str], task: Any, message: str
) -> None:
    path = table(*lines) if lines else table().with_name("labels.csv")
    if not lines:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=message) as raised:
        open_data(path, task=task)
    assert "labels.csv" in str(raised.value)


def test_csv_that_is_not_utf8_is_refused(table: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"labels.csv line 3 is not UTF-8: save the file as UTF-8"):
        open_data(table("path,label", "0.jpg,a", "1.jpg,é", encoding="latin-1"))
    with pytest.raises(DataError, match=r"labels.csv line 1 is not UTF-8"):
        open_data(table("path,label", "0.jpg,a", encoding="utf-16"))


def test_csv_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data in .*labels.csv: no such folder or file"):
        open_data(tmp_path / "labels.csv")


def test_label_of_thousands_of_digits_is_sorted(table: Callable[..., Path]) -> None:
    assert len(opened(table("path,label", f"0.jpg,{'7' * 9000}", "1.jpg,8")).label_names) == 2


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([None, "multiclass", "multilabel", "regression"]))
def test_any_bytes_are_a_csv_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, task: Any
) -> None:
    root = write_images(tmp_path_factory.getbasetemp(), "0.jpg")
    (root / "any.csv").write_bytes(b"path,label\n0.jpg," + body)
    try:
        source = opened(root / "any.csv", task=task)
    except DataError:
        return
    assert source.targets is not None
    assert np.isfinite(source.targets).all()


# Hold-out


def test_holdout_is_stratified_by_class() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = holdout(targets, "multiclass", 0.2, seed=0)
    assert [int(held[targets == label].sum()) for label in range(4)] == [20, 2, 1, 0]
    generator = np.random.default_rng(0)
    assert set(np.flatnonzero(held)[:20]) == set(generator.permutation(100)[:20])


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_seed_settles_the_holdout(task: Any) -> None:
    shape = 200 if task == "multiclass" else (200, 3)
    targets = np.random.default_rng(0).integers(0, 2, shape)
    first, same, other = (holdout(targets, task, 0.3, seed) for seed in (5, 5, 6))
    assert first.dtype == np.bool_
    assert (first == same).all()
    assert (first != other).any()
    assert first.mean() == pytest.approx(0.3, abs=0.02)


def test_regression_holds_out_the_share() -> None:
    assert [
        int(holdout(np.zeros((n, 1)), "regression", 0.2, seed=0).sum()) for n in (1, 2, 3, 10, 99)
    ] == [0, 1, 1, 2, 20]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_label_stays_in_training(data: st.DataObject) -> None:
    images, labels = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 6))
    bits = data.draw(st.lists(st.booleans(), min_size=images * labels, max_size=images * labels))
    targets = np.array(bits, np.float32).reshape(images, labels)
    share = data.draw(st.floats(0.05, 0.95))
    held = holdout(targets, "multilabel", share, data.draw(st.integers(0, 9)))
    assert (targets[~held].sum(0) > 0).tolist() == (targets.sum(0) > 0).tolist()


def test_multilabel_shares_are_nearer_than_those_of_chance() -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random((2000, 40)) < generator.uniform(0.005, 0.1, 40)).astype(np.float32)

    def largest_error(held: Any) -> float:
        return float(np.abs(targets[held].sum(0) / targets.sum(0) - 0.2).max())

    held = holdout(targets, "multilabel", 0.2, seed=0)
    assert held.mean() == pytest.approx(0.2, abs=0.005)
    assert largest_error(held) < 0.05
    assert largest_error(generator.random(2000) < 0.2) > 0.1


def test_multilabel_with_one_label_each_is_split_like_multiclass() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    held = holdout(np.eye(4, dtype=np.float32)[targets], "multilabel", 0.2, seed=0)
    assert [int(held[targets == label].sum()) for label in range(4)] == [20, 2, 1, 0]


# Decoding


def test_images_are_decoded_as_timm_decodes_them(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "rgba.png")
    image.convert("P").save(folder / "palette.png", transparency=3)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("LA").save(folder / "gray.png")
    image.convert("1").save(folder / "bits.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "16 bits.png")
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.convert("RGB").save(folder / "rotated.jpg", exif=rotated)
    data = create_dataset("", root=str(tmp_path))
    for number, (expected, _) in enumerate(data):
        found = open_image(data.reader.samples[number][0])
        assert found.mode == "RGB"
        assert found.size == (20, 12)
        assert found.tobytes() == expected.tobytes()


def test_image_is_opened_from_a_file_and_from_an_image(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    image.save(tmp_path / "1.png")
    file = (tmp_path / "1.png").open("rb")
    for found in (open_image(tmp_path / "1.png"), open_image(file), open_image(image)):
        assert found.tobytes() == image.tobytes()
    assert file.closed
    broken = io.BytesIO(b"no image")
    with pytest.raises(DataError, match="cannot identify image file"):
        open_image(broken)
    assert broken.closed


@pytest.mark.parametrize("size", [0, 20, 60])
def test_damaged_image_is_a_data_error_with_the_reason(tmp_path: Path, size: int) -> None:
    path = tmp_path / "1.png"
    Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"(?i)cannot identify|truncated"):
        open_image(path)
    with pytest.raises(DataError, match="No such file"):
        open_image(tmp_path / "none.png")


# timm's readers


def test_reader_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headkit.adapters.readers.find_spec", lambda _: None)
    with pytest.raises(DependencyMissing, match="reading wds/shards needs webdataset: pip install"):
        open_data("wds/shards@train")
    with pytest.raises(DependencyMissing, match="pip install tensorflow-datasets"):
        open_data("tfds/mnist")
    with pytest.raises(DataError, match="multiclass; multilabel needs a CSV"):
        open_data("hfds/beans", task="multilabel")


def test_folder_of_a_reader_s_name_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "wds" / "shards", "cat/1.jpg", "dog/1.jpg")
    monkeypatch.chdir(tmp_path)
    assert opened(Path("wds/shards")).label_names == ("cat", "dog")


@pytest.fixture
def tfds(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], dict[str, int]]:
    """TensorFlow Datasets without TensorFlow: the classes of each name and split."""
    known: dict[tuple[str, str], dict[str, int]] = {}

    def create(name: str, split: str, class_map: dict[int, int] | None = None) -> Any:
        classes = known[name, split]
        targets = [np.int64((class_map or {}).get(i, i)) for i in classes.values()]
        return Stream([(Image.new("RGB", (4, 4)), target) for target in targets], classes)

    monkeypatch.setattr("headkit.adapters.readers.find_spec", lambda _: True)
    monkeypatch.setattr("headkit.adapters.readers.create_dataset", create)
    return known


class Stream(list[Any]):
    def __init__(self, samples: Sequence[Any], classes: dict[str, int]) -> None:
        super().__init__(samples)
        self.reader = SimpleNamespace(class_to_idx=classes)


def test_stream_keeps_its_classes_and_validation_is_matched_by_name(
    tfds: dict[tuple[str, str], dict[str, int]], tmp_path: Path
) -> None:
    tfds["tfds/pets", "train"] = {"cat": 0, "emu": 2, "dog": 1}
    tfds["tfds/pets", "validation"] = {"emu": 0, "cat": 1}
    tfds["tfds/pets", "test[:5]"] = {"cat": 0, "fox": 1}
    tfds["tfds/numbers", "train"] = {}
    train, val = open_data("tfds/pets", "tfds/pets")
    assert train.label_names == ("cat", "dog", "emu")
    assert (train.paths, train.targets, train.reader) == (None, None, None)
    assert train.name == "tfds/pets (split train)"
    assert count(train) == 3
    assert val is not None
    assert val.label_names == train.label_names
    assert [int(target) for _, target in val.stream] == [2, 0]
    with pytest.raises(DataError, match=r"tfds/pets \(split test\[:5\]\) has the class fox, which"):
        open_data("tfds/pets", "tfds/pets@test[:5]")
    with pytest.raises(DataError, match="has no class names, so the classes of both cannot be"):
        open_data("tfds/pets", "tfds/numbers@train")
    numbers, _ = open_data("tfds/numbers")
    assert numbers.label_names == ()
    folder = write_images(tmp_path, "cat/1.jpg", "emu/1.jpg")
    _, val = open_data("tfds/pets", folder)
    assert val is not None
    assert val.targets is not None
    assert val.targets.tolist() == [0, 2]


def test_what_a_reader_raises_is_a_data_error(
    tfds: dict[tuple[str, str], dict[str, int]],
) -> None:
    with pytest.raises(DataError, match=r"timm cannot open tfds/pets \(split nosuch\): \('tfds/pe"):
        open_data("tfds/pets@nosuch")


def write_shard(path: Path, targets: Sequence[object], extension: str = "png") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, target in enumerate(targets):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (number, 0, 0)).save(content, Image.EXTENSION[f".{extension}"])
            files = {extension: content.getvalue(), "cls": str(target).encode()}
            for suffix, data in files.items():
                member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of training images and one of validation images in a WebDataset."""
    pytest.importorskip("webdataset")
    Image.init()
    root = tmp_path / "my #1 shards@home"
    write_shard(root / "train-0000.tar", [0, 1, 2, 0])
    write_shard(root / "train-0001.tar", [1, 2], "jpeg")
    write_shard(root / "val-0000.tar", [2, 1])
    splits = {
        "train": (["train-0000.tar", "train-0001.tar"], [4, 2]),
        "validation": (["val-0000.tar"], [2]),
        "gone": (["gone-0000.tar"], [2]),
    }
    info = {
        name: {
            "name": name,
            "filenames": files,
            "shard_lengths": lengths,
            "num_samples": sum(lengths),
        }
        for name, (files, lengths) in splits.items()
    }
    (root / "_info.json").write_text(json.dumps({"splits": info}))
    return root


def test_webdataset_is_streamed(shards: Path) -> None:
    (shards / "classes.txt").write_text("cat\ndog\nemu\n")
    train, val = open_data(f"wds/{shards}", f"wds/{shards}")
    assert train.label_names == ("cat", "dog", "emu")
    assert count(train) == 6
    read = list(train.stream)
    assert [target for _, target in read] == [0, 1, 2, 0, 1, 2]
    assert [open_image(image).size for image, _ in read] == [(8, 8)] * 6
    assert val is not None
    assert [target for _, target in val.stream] == [2, 1]


def test_webdataset_shards_are_shared_out_to_workers(shards: Path) -> None:
    from torch.utils.data import DataLoader

    train, _ = open_data(f"wds/{shards}")
    loader: Any = DataLoader(train.stream, batch_size=None, num_workers=2, collate_fn=list)
    assert sorted(target for _, target in loader) == [0, 0, 1, 1, 2, 2]


def test_webdataset_needs_no_description(shards: Path) -> None:
    (shards / "_info.json").unlink()
    with pytest.raises(DataError, match=r"split train not found .* expected the split in .*_info"):
        open_data(f"wds/{shards}")
    shutil.move(shards, shards.with_name("plain"))
    source, _ = open_data(f"wds/{shards.with_name('plain')}@train-{{0000..0001}}.tar")
    assert source.label_names == ()
    assert count(source) is None
    assert len(list(source.stream)) == 6


def test_webdataset_class_names_stand_in_its_description_too(shards: Path) -> None:
    info = json.loads((shards / "_info.json").read_text())
    (shards / "_info.json").write_text(json.dumps({**info, "label_names": ["cat", "dog", "emu"]}))
    train, _ = open_data(f"wds/{shards}@train")
    assert train.label_names == ("cat", "dog", "emu")
    (shards / "_info.json").write_text(json.dumps({**info, "label_names": ["cat", "dog"]}))
    with pytest.raises(DataError, match="has the class index 2, but only 2 class names"):
        open_data(f"wds/{shards}@validation")


def test_webdataset_that_timm_would_read_as_empty_is_refused(shards: Path) -> None:
    with pytest.raises(DataError, match=r"lacks the shard gone-0000.tar in .*my #1 shards"):
        open_data(f"wds/{shards}@gone")
    write_shard(shards / "val-0000.tar", ["cat", "dog"])
    with pytest.raises(DataError, match=r"no image of .* can be read; .* class index in KEY.cls"):
        open_data(f"wds/{shards}@validation")


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, with its files in a folder of the test and without network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder that Hugging Face's imagefolder reads."""
    root = tmp_path / "pictures"
    for split, images in (("train", 3), ("validation", 1)):
        for name in ("cat", "c10", "c9"):
            (root / split / name).mkdir(parents=True)
            for number in range(images):
                Image.new("RGB", (8, 8)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def parquet(hugging_face: Any, pictures: Path, tmp_path: Path) -> Callable[..., str]:
    """Write nine images and columns of labels into a folder that ``hfds/`` opens."""
    images = [str(path) for path in sorted(pictures.glob("train/*/*"))]

    def write(features: dict[str, Any], image: str = "image", **columns: list[Any]) -> str:
        table = {image: images, **columns}
        features = {image: hugging_face.Image(), **features}
        made = hugging_face.Dataset.from_dict(table, hugging_face.Features(features))
        root = tmp_path / f"parquet{len(list(tmp_path.iterdir()))}"
        root.mkdir()
        made.to_parquet(root / "train.parquet")
        return f"hfds/{root}"

    return write


def targets_of(source: Source) -> list[int]:
    return [source.reader[number][1] for number in range(len(source.reader))]


def test_hugging_face_folder_is_read(hugging_face: Any, pictures: Path) -> None:
    train, val = open_data(f"hfds/{pictures}", f"hfds/{pictures}")
    assert set(train.label_names) == {"cat", "c10", "c9"}
    assert count(train) == 9
    file, target = train.reader[8]
    assert open_image(file).size == (8, 8)
    assert train.label_names[target] in train.reader.filename(8)
    assert val is not None
    assert targets_of(val) == [0, 1, 2]
    with pytest.raises(DataError, match=r'split nosuch\): Unknown split "nosuch"'):
        open_data(f"hfds/{pictures}@nosuch")
    with pytest.raises(DataError, match=r"timm cannot open hfds/.*none \(split train\): Couldn't"):
        open_data(f"hfds/{pictures / 'none'}")


def test_hugging_face_data_set_is_streamed(hugging_face: Any, pictures: Path) -> None:
    source, _ = open_data(f"hfids/{pictures}")
    assert set(source.label_names) == {"cat", "c10", "c9"}
    assert count(source) is None
    assert sorted(target for _, target in source.stream) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    with pytest.raises(DataError, match=r"split nosuch\): Bad split: nosuch"):
        open_data(f"hfids/{pictures}@nosuch")


def test_only_column_of_each_kind_is_found(hugging_face: Any, parquet: Callable[..., str]) -> None:
    classes = hugging_face.ClassLabel(names=["a", "b", "c"])
    name = parquet({"fine": classes}, image="img", fine=[2, 1, 0] * 3)
    source, _ = open_data(name)
    assert source.label_names == ("a", "b", "c")
    assert targets_of(source) == [2, 1, 0] * 3
    streamed, _ = open_data(name.replace("hfds", "hfids"))
    assert [target for _, target in streamed.stream] == [2, 1, 0] * 3
    assert count(streamed) == 9
    columns = {"fine": [0] * 9, "coarse": [0] * 9}
    ambiguous = parquet({"fine": classes, "coarse": classes}, **columns)
    with pytest.raises(DataError, match="has the columns image, fine, coarse; expected image and"):
        open_data(ambiguous)


def test_classes_of_training_are_those_with_an_image(
    hugging_face: Any, parquet: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    classes = hugging_face.ClassLabel(names=["a", "unused", "b"])
    train = parquet({"label": classes}, label=[2, 0, 2] * 3)
    swapped = hugging_face.ClassLabel(names=["other", "b", "a"])
    val = parquet({"label": swapped}, label=[2, 1, 1] * 3)
    source, held = open_data(train, f"{val}@train")
    assert source.label_names == ("a", "b")
    assert targets_of(source) == [1, 0, 1] * 3
    assert "has classes without an image, left out: unused" in caplog.text
    assert held is not None
    assert targets_of(held) == [0, 1, 1] * 3
    unknown = parquet({"label": swapped}, label=[2, 1, 0] * 3)
    with pytest.raises(DataError, match="has the class other, which the training data lacks"):
        open_data(train, f"{unknown}@train")


def test_labels_of_text_and_of_numbers_become_classes(
    hugging_face: Any, parquet: Callable[..., str]
) -> None:
    text = parquet({"label": hugging_face.Value("string")}, label=["c10", "c9", "c1"] * 3)
    source, _ = open_data(text)
    assert source.label_names == ("c1", "c9", "c10")
    assert targets_of(source) == [2, 1, 0] * 3
    with pytest.raises(DataError, match=r"are text, which hfds/.* can read"):
        open_data(text.replace("hfds", "hfids"))
    numbers = parquet({"label": hugging_face.Value("int64")}, label=[10, 9, 200] * 3)
    source, _ = open_data(numbers)
    assert source.label_names == ("9", "10", "200")
    assert targets_of(source) == [1, 0, 2] * 3


def test_labels_that_are_not_one_class_each_are_refused(
    hugging_face: Any, parquet: Callable[..., str]
) -> None:
    classes = hugging_face.ClassLabel(names=["a", "b"])
    several = parquet({"label": hugging_face.Sequence(classes)}, label=[[0, 1]] * 9)
    with pytest.raises(DataError, match=r"the labels of .* are of type List, expected one class"):
        open_data(several)
    floats = parquet({"label": hugging_face.Value("float32")}, label=[0.5] * 9)
    with pytest.raises(DataError, match=r"are of type Value float32, expected one class per image"):
        open_data(floats)
    for nothing in (-1, None):
        unlabelled = parquet({"label": classes}, label=[0, 1, nothing] * 3)
        with pytest.raises(DataError, match=r"has images without a label \((-1|None)\)"):
            open_data(unlabelled)
    one = parquet({"label": classes}, label=[1] * 9)
    with pytest.raises(DataError, match="has one class, b: a classifier needs at least two"):
        open_data(one)
