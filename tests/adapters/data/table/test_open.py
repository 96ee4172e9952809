from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headkit.adapters.data.open import count, open_data
from headkit.adapters.errors import DataError
from tests.adapters.data.listings import open_train, write_images


def test_csv_classes_have_the_order_of_folders(table: Callable[..., Path]) -> None:
    path = table("path,label", "0.jpg,c10", "1.jpg,c9", "2.jpg, C1 ", "3.jpg,c9")
    dataset = open_train(path)
    assert dataset.task == "multiclass"
    assert dataset.label_names == ("C1", "c9", "c10")
    assert dataset.targets is not None
    assert dataset.targets.dtype == np.int64
    assert dataset.targets.tolist() == [2, 1, 0, 1]
    assert dataset.paths == tuple(str(path.parent / f"{i}.jpg") for i in range(4))
    assert count(dataset) == 4


def test_csv_paths_are_absolute_or_relative_to_its_folder(
    table: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("sub/ü 猫.jpg", "sub/a, b #1%20.JPG")
    write_images(tmp_path, *names)
    table("path,label", f"{names[0]},a", f'"{names[1]}",b', f"{tmp_path / '0.jpg'},a")
    monkeypatch.chdir(tmp_path)
    dataset = open_train(Path("labels.csv"))
    assert dataset.paths == (*names, str(tmp_path / "0.jpg"))


def test_separator_makes_a_csv_multilabel(table: Callable[..., Path]) -> None:
    dataset = open_train(table("path,label", "0.jpg,b|a", "1.jpg,", "2.jpg,c", "3.jpg,a | a"))
    assert dataset.task == "multilabel"
    assert dataset.label_names == ("a", "b", "c")
    assert dataset.targets is not None
    assert dataset.targets.dtype == np.float32
    assert dataset.targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_csv_without_separator_is_read_as_multilabel_on_request(table: Callable[..., Path]) -> None:
    dataset = open_train(table("path,label", "0.jpg,a", "1.jpg,"), task="multilabel")
    assert dataset.label_names == ("a",)
    assert dataset.targets is not None
    assert dataset.targets.tolist() == [[1], [0]]


def test_regression_reads_one_column_of_numbers(table: Callable[..., Path]) -> None:
    dataset = open_train(table("path,label", "0.jpg,-1.5", "1.jpg,2e3"), task="regression")
    assert dataset.label_names == ("label",)
    assert dataset.targets is not None
    assert dataset.targets.dtype == np.float32
    assert dataset.targets.tolist() == [[-1.5], [2000]]
    several = open_train(table("path,label", "0.jpg,1|2", "1.jpg,3| 4"), task="regression")
    assert several.label_names == ("label_0", "label_1")
    assert several.targets is not None
    assert several.targets.tolist() == [[1, 2], [3, 4]]


def test_regression_reads_a_column_for_each_output(table: Callable[..., Path]) -> None:
    train = table("age,path,height", "1,0.jpg,2", "3,1.jpg,4")
    val = table("path,height,age", "2.jpg,6,5", name="val.csv")
    dataset, validation = open_data(train, val, task="regression")
    assert dataset.label_names == ("age", "height")
    assert dataset.targets is not None
    assert dataset.targets.tolist() == [[1, 2], [3, 4]]
    assert validation is not None
    assert validation.targets is not None
    assert validation.targets.tolist() == [[5, 6]]
    other = table("path,age,width", "2.jpg,6,5", name="other.csv")
    with pytest.raises(DataError, match=r"has the outputs age, width; the training data has"):
        open_data(train, other, task="regression")


def test_column_split_separates_training_from_validation(table: Callable[..., Path]) -> None:
    rows = ["0.jpg,train,b", "1.jpg,val,a", "2.jpg,TEST,b", "3.jpg,validation,a", "4.jpg,train,a"]
    path = table("path,split,label", *rows)
    train, val = open_data(path)
    assert val is not None
    assert train.label_names == val.label_names == ("a", "b")
    assert [Path(name).name for name in train.paths or ()] == ["0.jpg", "4.jpg"]
    assert [Path(name).name for name in val.paths or ()] == ["1.jpg", "3.jpg"]
    assert [(one.reason, one.count) for one in train.skipped] == [("in the split test", 1)]
    assert train.targets is not None
    assert train.targets.tolist() == [1, 0]
    assert val.targets is not None
    assert val.targets.tolist() == [0, 0]
    plain = table("path,label", "5.jpg,a", "6.jpg,b", name="plain.csv")
    _, val = open_data(plain, path)  # only its validation lines
    assert val is not None
    assert count(val) == 2
    with pytest.raises(DataError, match=r"has its own validation lines, but val is .*: omit val"):
        open_data(path, plain)


def test_folder_and_csv_validate_each_other(table: Callable[..., Path], tmp_path: Path) -> None:
    root = write_images(tmp_path / "images", "cat/1.jpg", "dog/1.jpg")
    path = table("path,label", "0.jpg,dog", "1.jpg,cat")
    for data, val in ((root, path), (path, root)):
        train, validation = open_data(data, val)
        assert validation is not None
        assert train.label_names == validation.label_names == ("cat", "dog")
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
    assert open_train(path).label_names == ("b", "é")


def test_repeated_line_counts_once(
    table: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_train(table("path,label", "0.jpg,a", "1.jpg,b", "./0.jpg,a", "1.jpg,b"))
    assert count(dataset) == 2
    assert "has 2 duplicate lines (same image, same label), such as" in caplog.text
    assert "0.jpg on line 4: they are ignored" in caplog.text


HEADER = "path,label"
REFUSED: list[tuple[str, list[str], str | None, str]] = [
    ("empty", [], None, r"labels.csv is empty: expected a first line with the columns path,label"),
    ("header", [HEADER], None, "lists no images: it has only a header line"),
    ("columns", ["a,class", "0.png,a", "x,b"], None, "has the columns a, class in its first line"),
    ("no header", ["0.jpg,a", "1.jpg,b"], None, "has the columns 0.jpg, a in .* expected path,lab"),
    ("slashes", ["path/label", "0.jpg/a"], None, r"has the columns path/label in its first"),
    ("outputs", ["path,age,size", "0.jpg,1,2"], None, "output has its own column, set the task to"),
    ("no outputs", ["path,split", "0.jpg,val"], "regression", "columns path, split .* expected"),
    ("twice", ["path,label,label", "0.jpg,a,b"], None, "has the column label twice"),
    ("cells", [HEADER, "0.jpg,a", "1.jpg,b,c"], None, r"line 3 has 3 columns, expected 2 \(path, "),
    (
        "quote",
        [HEADER, '"0.jpg,a', "1.jpg,b"],
        None,
        r"line 3 is not valid CSV: unexpected end of data",
    ),
    ("path", [HEADER, "0.jpg,a", ",b"], None, "line 3 has no path"),
    ("one class", [HEADER, "0.jpg,a", "1.jpg,a"], None, "has one class, a: a classifier needs"),
    ("no label", [HEADER, "0.jpg,a", "1.jpg, "], None, "line 3 has no label; .* task multilabel"),
    ("no labels", [HEADER, "0.jpg,", "1.jpg,"], "multilabel", "has no labels"),
    ("several", [HEADER, "0.jpg,a", "1.jpg,a|b"], "multiclass", r"line 3 has several labels, a\|b"),
    ("hole", [HEADER, "0.jpg,a||b"], None, r"line 2 has an empty label in 'a\|\|b'"),
    (
        "contradiction",
        [HEADER, "0.jpg,a", "1.jpg,b", "0.jpg,b"],
        None,
        r"lines 2 and 4 have different labels for .*0.jpg: a and b \(to give an image several",
    ),
    (
        "leak",
        ["path,label,split", "0.jpg,a,train", "1.jpg,b,train", "0.jpg,a,val"],
        None,
        r"lines 2 and 4 put .*0.jpg into both training and validation",
    ),
    ("split", ["path,label,split", "0.jpg,a,new"], None, "line 2 has the split 'new', expec"),
    (
        "no train",
        ["path,label,split", "0.jpg,a,val"],
        None,
        "has no training lines: no line has the split train",
    ),
    (
        "unknown",
        ["path,label,split", "0.jpg,a,train", "1.jpg,b,train", "2.jpg,c,val"],
        None,
        "has classes that the training data does not have: c",
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
        r"5 of the 6 images in \S* do not exist: \S*none0.jpg \(line 3\), "
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


def test_missing_csv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data in .*labels.csv: no such folder or file"):
        open_data(tmp_path / "labels.csv")


def test_label_of_thousands_of_digits_is_sorted(table: Callable[..., Path]) -> None:
    assert len(open_train(table("path,label", f"0.jpg,{'7' * 9000}", "1.jpg,8")).label_names) == 2


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([None, "multiclass", "multilabel", "regression"]))
def test_any_bytes_are_a_csv_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, task: Any
) -> None:
    root = write_images(tmp_path_factory.getbasetemp(), "0.jpg")
    (root / "any.csv").write_bytes(b"path,label\n0.jpg," + body)
    try:
        dataset = open_train(root / "any.csv", task=task)
    except DataError:
        return
    assert dataset.targets is not None
    assert np.isfinite(dataset.targets).all()


def test_labels_with_a_fraction_need_the_word_of_the_user(table: Callable[..., Path]) -> None:
    path = table("path,label", "0.jpg,1.5", "1.jpg,0.25", "2.jpg,1")
    with pytest.raises(DataError, match=r"fraction, such as '0\.25': set the task to regression"):
        open_data(path)
    train, _ = open_data(path, task="regression")
    assert train.targets is not None
    assert train.targets.ravel().tolist() == [1.5, 0.25, 1.0]
    train, _ = open_data(path, task="multiclass")
    assert train.label_names == ("0.25", "1", "1.5")
    whole, _ = open_data(table("path,label", "0.jpg,1", "1.jpg,2", "2.jpg,2.0", name="w.csv"))
    assert whole.task == "multiclass"
