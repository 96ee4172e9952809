"""Objects of other libraries are opened with their own names of classes, columns and splits."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars
import pyarrow
import pytest
import torch
from datasets import ClassLabel, Features, Image, Sequence, Value
from PIL import Image as Pillow
from torch.utils.data import Dataset, Subset

from headkit.adapters.data.dataset import ImageDataset, count
from headkit.adapters.data.evaluation import HeadOutputs, open_evaluation
from headkit.adapters.data.open import open_data
from headkit.adapters.data.summary import describe_data
from headkit.adapters.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
IMAGES = [Pillow.fromarray(array) for array in PIXELS]


def _hugging_face(labels: list[Any], feature: Any, **names: str) -> datasets.Dataset:
    image, label = names.get("image", "image"), names.get("label", "label")
    columns = {image: IMAGES[: len(labels)], label: labels}
    return datasets.Dataset.from_dict(columns, features=Features({image: Image(), label: feature}))


def _train(data: Any, **options: Any) -> ImageDataset:
    train, val = open_data(data, **options)
    assert val is None
    assert train.targets is not None
    return train


def test_classes_of_hugging_face_keep_their_order_and_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    classes = ClassLabel(names=["zebra", "none", "ant"])
    with caplog.at_level(logging.WARNING, "headkit"):
        train = _train(_hugging_face([0, 2, 0, 2, 2, 0], classes, image="img", label="animal"))
    assert train.label_names == ("zebra", "ant")
    assert train.targets is not None
    assert train.targets.tolist() == [0, 1, 0, 1, 1, 0]
    assert "skipped the classes of the data set" in caplog.text
    with pytest.raises(DataError, match="class index -1, expected 0 to 2"):
        _train(_hugging_face([0, -1, 2], classes))


@pytest.mark.parametrize(
    ("labels", "feature", "task", "names", "targets"),
    [
        (["b", "a", "b"], Value("string"), "multiclass", ("a", "b"), [1, 0, 1]),
        ([5, 3, 5], Value("int64"), "multiclass", ("3", "5"), [1, 0, 1]),
        ([True, False, True], Value("bool"), "multiclass", ("False", "True"), [1, 0, 1]),
        ([0.5, 1.0, 2.0], Value("float32"), "regression", ("label",), [[0.5], [1.0], [2.0]]),
        (
            [[0, 1], [1], []],
            Sequence(ClassLabel(names=["x", "y"])),
            "multilabel",
            ("x", "y"),
            [[1, 1], [0, 1], [0, 0]],
        ),
        (
            [["x", "y"], ["y"], []],
            Sequence(Value("string")),
            "multilabel",
            ("x", "y"),
            [[1, 1], [0, 1], [0, 0]],
        ),
    ],
)
def test_columns_of_hugging_face_determine_the_task(
    labels: list[Any], feature: Any, task: str, names: tuple[str, ...], targets: list[Any]
) -> None:
    train = _train(_hugging_face(labels, feature))
    assert (train.task, train.label_names) == (task, names)
    assert train.targets is not None
    assert train.targets.tolist() == targets


def test_images_of_hugging_face_stay_encoded_and_selections_are_kept() -> None:
    data = _hugging_face([0, 1, 0, 1, 0, 1], ClassLabel(names=["a", "b"])).select([5, 0, 2, 3])
    train = _train(data)
    assert train.targets is not None
    assert train.targets.tolist() == [1, 0, 0, 1]
    source, target = train.reader[0]
    assert isinstance(source, bytes)
    assert target == 1
    columns = _train(data[:])
    assert columns.targets is not None
    assert columns.targets.tolist() == [1, 0, 0, 1]
    assert np.array_equal(np.asarray(columns.reader[0][0]), PIXELS[5])


class Items(Dataset[Any]):
    """A torch data set of given items."""

    def __init__(self, items: list[Any], **attributes: Any) -> None:
        self.items = items
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


PAIRS = [(image, number % 2) for number, image in enumerate(IMAGES)]


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (Items(PAIRS), ("0", "1")),
        (Items(PAIRS, classes=["cat", "dog"]), ("cat", "dog")),
        (Items(PAIRS, class_to_idx={"dog": 1, "cat": 0}), ("cat", "dog")),
        (Subset(Items(PAIRS, classes=["cat", "dog"]), [1, 2, 3]), ("cat", "dog")),
        (Items(PAIRS, classes=["cat", "dog"], targets=[0, 1, 0, 1, 0, 1]), ("cat", "dog")),
        (Items([(x, torch.tensor(y)) for x, y in PAIRS]), ("0", "1")),
        (Items([{"image": x, "label": y} for x, y in PAIRS]), ("0", "1")),
        (Items([(np.asarray(x), y) for x, y in PAIRS]), ("0", "1")),
        (Items([(torch.from_numpy(np.asarray(x).copy()), y) for x, y in PAIRS]), ("0", "1")),
    ],
)
def test_items_of_a_torch_data_set_are_read(data: Any, names: tuple[str, ...]) -> None:
    train = _train(data)
    assert train.label_names == names
    assert train.targets is not None
    expected = [1, 0, 1] if len(data) == 3 else [0, 1, 0, 1, 0, 1]
    assert train.targets.tolist() == expected
    assert np.array_equal(np.asarray(train.reader[2][0]), PIXELS[3 if len(data) == 3 else 2])


def test_targets_that_the_items_contradict_are_not_used() -> None:
    data = Items([(x, f"class {y}") for x, y in PAIRS], targets=[0, 1, 0, 1, 0, 1])
    assert _train(data).label_names == ("class 0", "class 1")
    shorter = Items(PAIRS, targets=[0, 1])
    assert len(_train(shorter).targets) == 6  # type: ignore[arg-type]


def test_options_name_the_columns_of_a_data_frame(tmp_path: Path) -> None:
    paths = []
    for number, image in enumerate(IMAGES):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    frame = pd.DataFrame({"where": paths, "what": list("ababab"), "who": list("xyxyxy")})
    train = _train(frame, path_column="where", label_column="who")
    assert train.label_names == ("x", "y")
    assert train.paths == tuple(paths)
    with pytest.raises(DataError, match="has the columns where, what, who"):
        open_data(frame)
    with pytest.raises(DataError, match=r"label_column .* not a table"):
        open_data((PIXELS, list("ababab")), label_column="who")
    joined = frame.assign(what=["a b", "b", "a", "b", "a", "b"])
    for data, options in (
        (joined, {"path_column": "where", "label_column": "what"}),
        ((PIXELS, joined["what"]), {}),
    ):
        train = _train(data, label_separator=" ", **options)
        assert (train.task, train.label_names) == ("multilabel", ("a", "b"))


TABLES: list[Callable[[pd.DataFrame], Any]] = [
    lambda frame: frame,
    lambda frame: frame.set_index("split", drop=False),
    polars.from_pandas,
    lambda frame: pyarrow.Table.from_pandas(frame, preserve_index=False),
    lambda frame: frame.to_dict("list"),
    lambda frame: frame.to_dict("records"),
    lambda frame: iter(frame.to_dict("records")),
    lambda frame: {name: frame[name] for name in frame},
]


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("column", ["path", "image"])
def test_columns_of_any_table_are_understood(
    column: str, form: Callable[[pd.DataFrame], Any], tmp_path: Path
) -> None:
    cells: list[Any] = []
    for number, image in enumerate(IMAGES):
        image.save(tmp_path / f"{number}.png")
        path = tmp_path / f"{number}.png"
        cells.append(str(path) if column == "path" else path.read_bytes())
    splits = ["train"] * 4 + ["val", "test"]
    frame = pd.DataFrame({column: cells, "label": list("ababab"), "split": splits})
    train, val = open_data(form(frame))
    assert val is not None
    assert train.targets is not None
    assert train.label_names == ("a", "b")
    assert (count(train), count(val)) == (4, 1)
    assert train.targets.tolist() == [0, 1, 0, 1]
    found = open_evaluation(form(frame), HeadOutputs("multiclass", ("b", "a")))
    assert (count(found), found.targets.tolist()) == (1, [0])  # type: ignore[union-attr]


def test_tables_with_holes_are_refused() -> None:
    with pytest.raises(DataError, match="columns of different lengths: path 2, label 1"):
        open_data({"path": ["a.png", "b.png"], "label": ["a"]})
    with pytest.raises(DataError, match="item 1 of the list has the keys path; item 0 has"):
        open_data([{"path": "a.png", "label": "a"}, {"path": "b.png"}])
    with pytest.raises(DataError, match="image 1 of the DataFrame has no label"):
        open_data(pd.DataFrame({"image": IMAGES[:3], "label": ["a", None, "b"]}))


def test_column_of_images_may_have_splits_and_columns_of_classes() -> None:
    frame = pd.DataFrame({"image": IMAGES, "cat": [1, 0] * 3, "dog": [1, 1, 0, 0, 1, 0]})
    train = _train(frame)
    assert (train.task, train.label_names) == ("multilabel", ("cat", "dog"))
    frame["split"] = ["train"] * 4 + ["val"] * 2
    train, val = open_data(frame)
    assert (len(train.reader), len(val.reader)) == (4, 2)  # type: ignore[union-attr]
    outputs = HeadOutputs("multilabel", ("dog", "cat"))
    assert open_evaluation(frame, outputs).targets.tolist() == [[1, 1], [0, 0]]  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", ["", "[N, 1]"])
def test_head_is_measured_on_data_in_memory_by_the_names_of_its_labels(suffix: str) -> None:
    outputs = HeadOutputs("multiclass", ("dog", "cat", "eel"))
    labels = ["cat", "dog", "cat", "dog", "cat", "dog"]
    column: Any = np.array(labels)[:, None] if suffix else labels
    for data in ((PIXELS, column), {"test": (PIXELS, column), "train": (PIXELS[:1], ["eel"])}):
        found = open_evaluation(data, outputs)
        assert found.label_names == ("dog", "cat", "eel")
        assert found.targets is not None
        assert found.targets.tolist() == [1, 0, 1, 0, 1, 0]
    with pytest.raises(DataError, match="classes that the head does not have: ant"):
        open_evaluation((PIXELS[:2], ["ant", "cat"]), outputs)
    with pytest.raises(DataError, match="no splits"):
        open_evaluation((PIXELS, labels), outputs, "test")


def test_summary_of_data_in_memory_counts_its_images() -> None:
    summary = describe_data((PIXELS, list("ababbb")), val=(PIXELS[:2], ["a", "b"]))
    assert summary.splits["train"].images_per_class == {"a": 2, "b": 4}
    assert summary.splits["val"].images == 2
    assert "(X, y)" in str(summary)
