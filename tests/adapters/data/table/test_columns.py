import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkit.adapters.data.open import count, open_data
from headkit.adapters.data.options import ReadOptions
from headkit.adapters.data.table.open import open_table
from headkit.adapters.data.table.rows import cell_text, table_of_values
from headkit.adapters.errors import DataError
from tests.adapters.data.listings import open_train, write_images

Write = Callable[..., Path]


def _labels(dataset: Any) -> list[str]:
    return [dataset.label_names[target] for target in dataset.targets]


def _names(dataset: Any) -> list[str]:
    return [Path(path).name for path in dataset.paths]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.txt", "labels.CSV"])
def test_common_delimiters_are_recognized(table: Write, mark: str, name: str) -> None:
    lines = ("path,label,note", '0.jpg,a,"x, y; z"', "1.jpg,b,")
    dataset = open_train(table(*(line.replace(",", mark) for line in lines), name=name))
    assert _labels(dataset) == ["a", "b"]
    assert _names(dataset) == ["0.jpg", "1.jpg"]


def test_line_of_excel_that_names_the_delimiter_is_no_header(table: Write) -> None:
    path = table("sep=;", "path;label", "0.jpg;a", "1.jpg;b", encoding="utf-8-sig")
    assert _labels(open_train(path)) == ["a", "b"]
    with pytest.raises(DataError, match=r"line 4 has 1 columns, expected 2 .* a semicolon stands"):
        open_data(table("sep=;", "path;label", "0.jpg;a", "1.jpg"))


@pytest.mark.parametrize(
    "path_name",
    ["path", "file", "filename", "image", "Filepath", "fname", "file_name", "Image Path"],
)
@pytest.mark.parametrize("label_name", ["label", "class", "labels", "Target", "category", "tag"])
def test_columns_are_found_by_name(table: Write, path_name: str, label_name: str) -> None:
    path = table(f"width,{label_name},{path_name}", "3,a,0.jpg", "4,b,1.jpg")
    dataset = open_train(path)
    assert _labels(dataset) == ["a", "b"]
    assert _names(dataset) == ["0.jpg", "1.jpg"]


def test_user_names_the_columns(table: Write) -> None:
    path = table("id,breed,age,label", "0.jpg,lab,1,x", "1.jpg,pug,2,y")
    dataset = open_train(path, path_column="id", label_column="breed")
    assert _labels(dataset) == ["lab", "pug"]
    ages = open_train(path, path_column="id", label_column="age", task="regression")
    assert ages.label_names == ("age",)
    assert ages.targets is not None
    assert ages.targets.tolist() == [[1], [2]]
    with pytest.raises(
        DataError, match=r"label_column \(--label-column\) is 'race', but .*columns"
    ):
        open_data(path, label_column="race")


def test_the_only_other_column_is_the_label_and_paths_are_seen(table: Write) -> None:
    assert _labels(open_train(table("photo,breed", "0.jpg,lab", "1.jpg,pug"))) == ["lab", "pug"]


def test_paths_of_windows_and_spaces_around_paths_are_understood(
    table: Write, tmp_path: Path
) -> None:
    write_images(tmp_path, "cat/1.jpg", "a\\b.jpg" if os.name != "nt" else "a/b.jpg")
    dataset = open_train(table("path,label", "cat\\1.jpg,a", " 0.jpg ,b", "a\\b.jpg,a"))
    assert dataset.paths is not None
    assert all(Path(path).is_file() for path in dataset.paths)
    assert dataset.paths[:2] == (str(tmp_path / "cat" / "1.jpg"), str(tmp_path / "0.jpg"))


CONFLICTS = [
    (["file,image,label", "0.jpg,1.jpg,a"], "2 columns could be the paths of the images; name"),
    (["path,class,category", "0.jpg,a,b"], "columns class, category could be the labels; name one"),
    (["path,label,split,is_valid", "0.jpg,a,train,1"], "columns split, is_valid, which all say"),
    (["path,label,is_train,is_test", "0.jpg,a,1,0"], "columns is_train, is_test, which all say"),
    (["path,label,is_valid", "0.jpg,a,maybe"], "line 2 has the is_valid 'maybe', expected True or"),
    (["path,label,is_valid", "0.jpg,a,"], "line 2 has the is_valid '', expected True or False"),
    (["path,has_ship", "0.jpg,0", "1.jpg,1"], r"name the column of labels as label_column"),
    (
        ["path,a,b,note", "0.jpg,0,1,x", "1.jpg,1,0,y"],
        "or a,b if each of these columns is one clas",
    ),
]


@pytest.mark.parametrize(("lines", "message"), CONFLICTS)
def test_columns_that_are_not_clear_are_refused(
    table: Write, lines: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(table(*lines))


def test_one_column_of_bits_is_a_class_on_request(table: Write) -> None:
    path = table("path,has_ship", "0.jpg,0", "1.jpg,1")
    assert _labels(open_train(path, label_column="has_ship")) == ["0", "1"]


@pytest.mark.parametrize(
    ("header", "values"),
    [
        ("is_valid", ("False", "True", "false", "TRUE")),  # fastai
        ("is_valid", ("0", "1", "0", "1")),
        ("is_val", ("0.0", "1.0", "no", "yes")),
        ("is_train", ("True", "False", "1", "0")),
        ("split", ("train", "valid", "Training", "dev")),
        ("Split", ("TRAIN", "VAL", "train", "Validation")),
        ("subset", ("train", "val", "train", "val")),
    ],
)
def test_column_of_the_split_separates_training_from_validation(
    table: Write, header: str, values: tuple[str, ...]
) -> None:
    rows = [f"{i}.jpg,{'ab'[i // 2]},{value}" for i, value in enumerate(values)]
    train, val = open_data(table(f"path,label,{header}", *rows))
    assert val is not None
    assert _names(train) == ["0.jpg", "2.jpg"]
    assert _names(val) == ["1.jpg", "3.jpg"]


def test_column_that_may_be_a_split_and_is_not_is_ignored(table: Write) -> None:
    path = table("path,label,set,fold", "0.jpg,a,blue,0", "1.jpg,b,train,1")
    assert count(open_train(path)) == 2


def test_test_rows_neither_train_nor_validate(
    table: Write, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ("0.jpg,a,train", "1.jpg,b,train", "2.jpg,,test", "3.jpg,,test")
    path = table("path,label,split", *rows)
    train = open_train(path)
    assert _names(train) == ["0.jpg", "1.jpg"]
    assert [(s.reason, s.count) for s in train.skipped] == [("in the split test", 2)]
    assert "is not used: cross-validation on the training split measures the head" in caplog.text
    flagged = table("path,label,is_test", "0.jpg,a,0", "1.jpg,b,0", "2.jpg,a,1")
    assert _names(open_train(flagged)) == ["0.jpg", "1.jpg"]
    _, val = open_data(flagged, flagged)  # the caller asks for it
    assert val is not None
    assert _names(val) == ["2.jpg"]


def test_one_column_per_class_is_multiclass_if_each_row_has_one(table: Write) -> None:
    path = table("filename, dog, cat", "0.jpg, 1, 0", "1.jpg,0,1", "2.jpg,0.0,1.0")  # Roboflow
    dataset = open_train(path)
    assert dataset.task == "multiclass"
    assert dataset.label_names == ("dog", "cat")
    assert _labels(dataset) == ["dog", "cat", "cat"]
    several = open_train(path, task="multilabel")
    assert several.targets is not None
    assert several.targets.tolist() == [[1, 0], [0, 1], [0, 1]]


def test_one_column_per_class_is_multilabel_otherwise(table: Write) -> None:
    lines = (",path,dog,cat,pet", "0,0.jpg,1,0,1", "1,1.jpg,0,0,0", "2,2.jpg,False,True,True")
    dataset = open_train(table(*lines))
    assert dataset.task == "multilabel"
    assert dataset.label_names == ("dog", "cat", "pet")
    assert dataset.targets is not None
    assert dataset.targets.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1]]
    with pytest.raises(
        DataError, match=r"line 2 has 2 classes \(dog and pet\), but the task is mu"
    ):
        open_data(table(*lines), task="multiclass")


def test_user_names_the_columns_of_the_classes(table: Write) -> None:
    path = table("path,a,b,age", "0.jpg,0,1,7", "1.jpg,1,0,8")
    assert _labels(open_train(path, label_column="a,b")) == ["b", "a"]
    assert _labels(open_train(path, label_column=["b", "a"])) == ["b", "a"]
    with pytest.raises(DataError, match=r"line 2 has '7' in the column age, expected 0 or 1"):
        open_data(path, label_column="a,age")
    with pytest.raises(DataError, match="columns without a 1 in the training data: c; name the"):
        open_data(table("path,a,b,c", "0.jpg,0,1,0", "1.jpg,1,0,0"))


def test_columns_of_validation_data_may_be_in_another_order(table: Write) -> None:
    train = table("path,dog,cat", "0.jpg,1,0", "1.jpg,0,1")
    val = table("path,cat,dog", "2.jpg,1,0", name="val.csv")
    _, validation = open_data(train, val)
    assert validation is not None
    assert _labels(validation) == ["cat"]


SEPARATED = [
    (['0.jpg,"cat,pet"', "1.jpg,dog"], ["cat", "dog", "pet"]),
    (["0.jpg,cat;pet", "1.jpg,dog"], ["cat", "dog", "pet"]),
    (["0.jpg,cat|big pet", "1.jpg,dog"], ["big pet", "cat", "dog"]),
    (["0.jpg,\"['cat', 'big, pet']\"", "1.jpg,['dog']"], ["big, pet", "cat", "dog"]),
    (['0.jpg,"[""cat"", ""pet""]"', "1.jpg,[]"], ["cat", "pet"]),
]


@pytest.mark.parametrize(("rows", "names"), SEPARATED)
def test_separators_of_labels_are_recognized(
    table: Write, rows: list[str], names: list[str]
) -> None:
    dataset = open_train(table("path,label", *rows), task="multilabel")
    assert list(dataset.label_names) == names
    assert dataset.targets is not None
    assert dataset.targets.sum(1).tolist() == [2, len(names) - 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0.jpg,cat pet", "1.jpg,dog"], r"labels with spaces, such as 'cat pet': pass label_sep"),
        (['0.jpg,"cat,pet"', "1.jpg,cat;dog"], "commas and semicolons in its labels"),
    ],
)
def test_separators_that_are_not_clear_are_refused(
    table: Write, rows: list[str], message: str
) -> None:
    path = table("path,label", *rows)
    with pytest.raises(DataError, match=message) as raised:
        open_data(path, task="multilabel")
    assert "label_separator (--label-separator)" in str(raised.value)


@pytest.mark.parametrize("mark", [" ", " / ", ";", "+"])
def test_user_names_the_separator(table: Write, mark: str) -> None:
    dataset = open_train(
        table("path,label", f"0.jpg,cat{mark}pet", "1.jpg,pet"), label_separator=mark
    )
    assert dataset.task == "multilabel"
    assert dataset.label_names == ("cat", "pet")
    assert dataset.targets is not None
    assert dataset.targets.tolist() == [[1, 1], [0, 1]]


def test_labels_with_spaces_are_kept_on_request(table: Write) -> None:
    path = table("path,label", "0.jpg,polar bear", "1.jpg,cat")
    assert open_train(path).label_names == ("cat", "polar bear")
    kept = open_train(path, task="multilabel", label_separator="|")
    assert kept.label_names == ("cat", "polar bear")
    train = table("path,label", "2.jpg,polar bear|cat", "3.jpg,cat", name="train.csv")
    _, val = open_data(train, path)  # its labels are known
    assert val is not None
    assert val.targets is not None
    assert val.targets.tolist() == [[0, 1], [1, 0]]


def test_joined_labels_without_a_task_stop_and_class_names_with_commas_do_not(
    table: Write,
) -> None:
    joined = table("path,label", '0.jpg,"cat,pet"', '1.jpg,"dog,pet"')
    with pytest.raises(DataError, match=r"labels such as 'cat,pet': set the task to multilabel if"):
        open_data(joined)
    assert open_train(joined, task="multiclass").label_names == ("cat,pet", "dog,pet")
    names = table("path,label", '0.jpg,"tench, Tinca tinca"', '1.jpg,"goldfish, Carassius auratus"')
    assert len(open_train(names).label_names) == 2


def test_regression_reads_numbers_with_another_separator(table: Write) -> None:
    path = table("path,label", "0.jpg,1 2", "1.jpg,3 4")
    dataset = open_train(path, task="regression", label_separator=" ")
    assert dataset.targets is not None
    assert dataset.targets.tolist() == [[1, 2], [3, 4]]


def test_values_in_memory_are_read_like_a_file(table: Write, tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [
        (tmp_path / "0.jpg", ["cat", "pet"], True),
        ("1.jpg", {"pet"}, np.bool_(False)),
        ("2.jpg", None, False),
        ("3.jpg", np.array(["cat"]), False),
    ]
    values = table_of_values("frame", ["file", "labels", "is_valid"], rows, str(tmp_path))
    splits = open_table(values, "multilabel", ReadOptions())
    assert splits.train.label_names == ("cat", "pet")
    assert splits.train.targets is not None
    assert splits.train.targets.tolist() == [[0, 1], [0, 0], [1, 0]]
    assert splits.val is not None
    assert _names(splits.val) == ["0.jpg"]
    with pytest.raises(DataError, match=r"in frame do not exist: .*9.jpg \(row 0\)"):
        open_table(table_of_values("frame", ["path", "label"], [("9.jpg", 1)]), None, ReadOptions())


def test_values_become_the_text_of_cells() -> None:
    values = (1, 2.0, 0.5, float("nan"), None, True, np.int64(3), np.float32(4), "x", [1, 2])
    texts = ["1", "2", "0.5", "", "", "True", "3", "4", "x", "1|2"]
    assert [cell_text(value) for value in values] == texts
    with pytest.raises(DataError, match=r"contains \|"):
        cell_text(["a|b"])
