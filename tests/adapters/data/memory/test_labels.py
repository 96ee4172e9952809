"""Labels of any type become the targets that scikit-learn gives them."""

from typing import Any

import numpy as np
import pandas as pd
import polars
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from sklearn.preprocessing import LabelEncoder, MultiLabelBinarizer

from headkit.adapters.data.memory.labels import Encoded, encode_labels
from headkit.adapters.errors import DataError

NUMBERS = [7, 3, 7, 11, 3]


@pytest.mark.parametrize(
    "labels",
    [
        NUMBERS,
        tuple(NUMBERS),
        np.array(NUMBERS),
        np.array(NUMBERS, np.uint8),
        np.array(NUMBERS)[:, None],
        [np.int32(number) for number in NUMBERS],
        torch.tensor(NUMBERS),
        [torch.tensor(number) for number in NUMBERS],
        [torch.tensor([number]) for number in NUMBERS],
        pd.Series(NUMBERS, index=[9, 8, 7, 6, 5]),
        pd.Series(NUMBERS, dtype="Int64"),
        pd.Series(NUMBERS, dtype="category"),
        pd.DataFrame({"label": NUMBERS}),
        polars.Series(NUMBERS),
        np.array(NUMBERS, object),
        (number for number in NUMBERS),
    ],
    ids=lambda labels: f"{type(labels).__name__}",
)
def test_whole_numbers_are_classes_in_the_order_of_their_values(labels: Any) -> None:
    found = encode_labels(labels, "y")
    encoder = LabelEncoder().fit(NUMBERS)
    assert (found.task, found.label_names) == ("multiclass", ("3", "7", "11"))
    assert list(map(int, found.label_names)) == encoder.classes_.tolist()
    assert found.targets.dtype == np.int64
    assert found.targets.tolist() == encoder.transform(NUMBERS).tolist()


@pytest.mark.parametrize(
    "labels",
    [
        ["cat", "dog", "cat"],
        np.array(["cat", "dog", "cat"]),
        np.array(["cat", "dog", "cat"], object),
        np.array(["cat", "dog", "cat"])[:, None],
        pd.DataFrame({"label": ["cat", "dog", "cat"]}),
        np.array([b"cat", b"dog", b"cat"]),
        pd.Series(["cat", "dog", "cat"], dtype="category"),
        pd.Series(["cat", "dog", "cat"], dtype="string"),
        [np.str_("cat"), "dog ", " cat"],
    ],
)
def test_text_is_classes(labels: Any) -> None:
    found = encode_labels(labels, "y")
    assert (found.task, found.label_names) == ("multiclass", ("cat", "dog"))
    assert found.targets.tolist() == [0, 1, 0]


@pytest.mark.parametrize("labels", [[True, False, True], np.array([1, 0, 1], bool)])
def test_truth_values_are_two_classes(labels: Any) -> None:
    found = encode_labels(labels, "y")
    assert (found.task, found.label_names) == ("multiclass", ("False", "True"))
    assert found.targets.tolist() == [1, 0, 1]


SEVERAL = [["cat", "pet"], ["dog", "pet"], [], ["cat"]]


@pytest.mark.parametrize(
    "labels",
    [
        SEVERAL,
        [set(row) for row in SEVERAL],
        [np.array(row, dtype="<U3") for row in SEVERAL],
        pd.Series(SEVERAL),
        ["cat|pet", "dog|pet", "", "cat"],
    ],
)
def test_lists_are_several_labels_of_an_image(labels: Any) -> None:
    found = encode_labels(labels, "y")
    binarizer = MultiLabelBinarizer().fit(SEVERAL)
    assert found.task == "multilabel"
    assert found.label_names == tuple(binarizer.classes_)
    assert found.targets.dtype == np.float32
    assert found.targets.tolist() == binarizer.transform(SEVERAL).tolist()


MATRIX = [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1]]


@pytest.mark.parametrize(
    "labels",
    [
        MATRIX,
        np.array(MATRIX),
        np.array(MATRIX, bool),
        np.array(MATRIX, np.float32),
        torch.tensor(MATRIX).float(),
        list(torch.tensor(MATRIX)),
        csr_matrix(MATRIX),
    ],
)
def test_matrix_of_0_and_1_has_a_column_per_label(labels: Any) -> None:
    found = encode_labels(labels, "y")
    assert (found.task, found.label_names) == ("multilabel", ("0", "1", "2"))
    assert found.targets.tolist() == MATRIX


def test_columns_of_a_table_name_the_labels_and_may_change_places() -> None:
    table = pd.DataFrame(MATRIX, columns=["a", "b", "c"])
    train = encode_labels(table, "y")
    assert train.label_names == ("a", "b", "c")
    val = encode_labels(table[["c", "a", "b"]], "y", known=train)
    assert val.targets.tolist() == MATRIX
    with pytest.raises(DataError, match="columns a, b; the training data has a, b, c"):
        encode_labels(table[["a", "b"]], "y", known=train)


def test_one_hot_matrix_is_one_class_per_image_as_in_a_table() -> None:
    matrix = np.eye(3)[[2, 0, 1, 1]]
    found = encode_labels(matrix, "y")
    assert (found.task, found.targets.tolist()) == ("multiclass", [2, 0, 1, 1])
    assert "exactly one label" in found.warnings[0]
    assert encode_labels(matrix, "y", task="multilabel").targets.tolist() == matrix.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        [0.5, 1.0, 2.25],
        np.array([0.5, 1.0, 2.25], np.float64),
        torch.tensor([[0.5], [1.0], [2.25]]),
        pd.Series([0.5, 1.0, 2.25]),
        [np.float32(0.5), 1, 2.25],
    ],
)
def test_numbers_with_a_fraction_are_a_regression(labels: Any) -> None:
    found = encode_labels(labels, "y")
    assert (found.task, found.label_names) == ("regression", ("label",))
    assert found.targets.tolist() == [[0.5], [1.0], [2.25]]


def test_several_numbers_per_image_are_outputs() -> None:
    rows = [[0.5, 10.0], [1.5, 20.0]]
    for labels in (rows, np.array(rows), torch.tensor(rows), [tuple(row) for row in rows]):
        found = encode_labels(labels, "y")
        assert (found.task, found.label_names) == ("regression", ("label_0", "label_1"))
        assert found.targets.tolist() == rows
    whole = [[1, 10], [2, 20]]
    assert encode_labels(whole, "y", task="regression").targets.tolist() == whole
    for text in (["1", "2"], [1, 2], [1.0, 2.0], [True, False]):
        assert encode_labels(text, "y", task="regression").task == "regression"


def test_indices_get_the_names_of_their_classes() -> None:
    names = ["cat", "dog", "eel"]
    found = encode_labels([2, 0, 2], "y", classes=names)
    assert found.label_names == ("cat", "eel")
    assert "dog" in found.warnings[0]
    assert found.targets.tolist() == [1, 0, 1]
    lists = encode_labels([[0, 2], [1], [0]], "y", classes=names)
    assert (lists.task, lists.label_names) == ("multilabel", ("cat", "dog", "eel"))
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(DataError, match="expected 0 to 2 for its 3 classes"):
            encode_labels(wrong, "y", classes=names)


def test_labels_of_validation_data_are_those_of_the_training_data() -> None:
    train = encode_labels(["b", "a", "c"], "y")
    assert encode_labels(["c", "a"], "y", known=train).targets.tolist() == [2, 0]
    assert encode_labels(["c", "c"], "y", known=train).targets.tolist() == [2, 2]
    with pytest.raises(DataError, match="does not have: d"):
        encode_labels(["d", "a"], "y", known=train)
    numbers = encode_labels([0.5, 1.5], "y")
    assert encode_labels([1.0, 2.0], "y", known=numbers).targets.tolist() == [[1], [2]]
    with pytest.raises(DataError, match="2 numbers per image; the training data has 1"):
        encode_labels([[1.0, 2.5]], "y", known=numbers)


@given(st.lists(st.integers(-(10**12), 10**12), min_size=2, max_size=30))
def test_any_whole_numbers_are_encoded_as_by_scikit_learn(labels: list[int]) -> None:
    if len(set(labels)) < 2:
        return
    for values in (labels, np.array(labels), torch.tensor(labels)):
        found = encode_labels(values, "y")
        encoder = LabelEncoder().fit(labels)
        assert found.label_names == tuple(map(str, encoder.classes_))
        assert found.targets.tolist() == encoder.transform(labels).tolist()


@given(
    st.lists(
        st.lists(st.sampled_from("abcde"), max_size=4, unique=True), min_size=1, max_size=20
    ).filter(any)
)
def test_any_lists_are_encoded_as_by_scikit_learn(labels: list[list[str]]) -> None:
    found = encode_labels(labels, "y")
    binarizer = MultiLabelBinarizer().fit(labels)
    assert found.label_names == tuple(binarizer.classes_)
    assert found.targets.tolist() == binarizer.transform(labels).tolist()


@pytest.mark.parametrize(
    ("labels", "task", "message"),
    [
        (None, None, "of type NoneType, expected a list or array"),
        (3, None, "of type int"),
        ("cat", None, "of type str"),
        ({"a": 1}, None, "of type dict"),
        ([], None, "has no labels"),
        (["a", None], None, "image 1 of y has no label"),
        (["a", float("nan")], None, "image 1 of y has no label"),
        (pd.Series(["a", pd.NA]), None, "image 1 of y has no label"),
        ([0.5, float("nan")], None, "image 1 of y has no label"),
        (np.array([0.5, np.inf]), None, "not finite, such as image 1"),
        (["a", ""], None, "image 1 has no label"),
        (["a", 1], None, "of type int, str"),
        ([object(), object()], None, "of type object"),
        (np.array(["2020-01-01", "2021-01-01"], "datetime64[D]"), None, "of type date"),
        ([1 + 2j, 3], None, "of type complex, int"),
        (["a", "a"], None, "one class, a"),
        ([1.0, 2.0], None, "set the task to regression"),
        ([0.5, 1.0], "multiclass", "0.5, which is not a class"),
        (["a", "b"], "regression", "'a', expected a number"),
        ([["a"], ["a", "b"]], "multiclass", "image 1 has 2 labels"),
        (MATRIX, "multiclass", "image 0 has 2 classes"),
        ([[0.5, 1], [1]], None, "1 to 2 numbers each"),
        ([[1, 2], [3]], "regression", "1 to 2 numbers each"),
        ([["a", 1]], None, "lists of labels of type int, str"),
        (np.zeros((2, 2, 2)), None, "have the shape"),
        (np.array([[2, 0], [1, 1]]), "multilabel", "values other than 0 and 1"),
        (["\ud800", "a"], None, "not UTF-8"),
        ([1e300, 0.5], None, "outside the range of float32"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, task: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_labels(labels, "y", task=task)


def test_validation_labels_with_wrong_columns_are_refused() -> None:
    known = Encoded("multilabel", ("a", "b"), np.empty(0))
    with pytest.raises(DataError, match="3 columns of labels for 2 labels"):
        encode_labels(MATRIX, "y", known=known)
