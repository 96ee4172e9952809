import json
from typing import Any

import pytest

from headkit.adapters.heads.summary import (
    find_weak_classes,
    format_metrics,
    format_validation,
    remarks,
    store_few_images,
    store_skipped,
)
from tests.heads import random_head

NAMES = ("ant", "bee", "cat", "dog", "eel")


def _texts(metrics: dict[str, Any], task: Any = "multiclass") -> list[str]:
    return [remark.text for remark in remarks(metrics, NAMES, task)]


def test_weak_classes_are_those_below_half_of_the_mean_recall_the_worst_first() -> None:
    recall = [0.9, 0.3, 1.0, 0.0, None]  # the mean of four is 0.55
    assert find_weak_classes(recall, NAMES) == [("dog", 0.0)]
    assert find_weak_classes([0.9, 0.2, 1.0, 0.0, 0.6], NAMES) == [("dog", 0.0), ("bee", 0.2)]
    assert find_weak_classes([0.5] * 5, NAMES) == []
    assert find_weak_classes([0.0] * 5, NAMES) == []


def test_collapsed_classes_are_named_with_their_recall() -> None:
    (text,) = _texts({"accuracy": 0.6, "recall": [1.0, 1.0, 1.0, 0.0, 0.1]})
    assert text == (
        "2 of 5 classes have a recall below half of the mean (0.62): dog 0.00, eel 0.10"
    )
    (text,) = _texts({"recall": [1.0, 1.0, 1.0, 1.0, 0.1]}, "multilabel")
    assert text == "1 of 5 classes has a recall below half of the mean (0.82): eel 0.10"


def test_many_weak_classes_are_shortened() -> None:
    names = tuple(f"c{number}" for number in range(20))
    metrics = {"recall": [1.0] * 12 + [0.0] * 8}
    (remark,) = remarks(metrics, names, "multiclass")
    assert remark.text.endswith(": c12 0.00, c13 0.00, c14 0.00, c15 0.00, c16 0.00 and 3 more")
    assert remark.serious


def test_class_without_validation_images_is_named() -> None:
    (text,) = _texts({"recall": [1.0, 1.0, 1.0, 1.0, None]})
    assert (
        text
        == "the recall of 1 class is unknown, because there are no images to measure it on: eel"
    )


def test_classes_with_few_images_are_named_the_fewest_first() -> None:
    stored = store_few_images([10, 9, 500, 2, 0])
    assert stored == {"num_few_images": 3, "fewest_images": [[4, 0], [3, 2], [1, 9]]}
    (text,) = _texts(stored)
    assert text == "3 classes have fewer than 10 training images: eel 0, dog 2, bee 9"
    assert store_few_images([10, 11]) == {}
    assert store_few_images(None) == {}


def test_skipped_files_and_the_unused_split_are_counted() -> None:
    stored = store_skipped([("format .heic", 40), ("in the split test", 12), ("format .heic", 8)])
    assert stored == {"skipped": {"format .heic": 48, "in the split test": 12}}
    texts = _texts({**stored, "num_unreadable": 1})
    assert texts == [
        "skipped 1 image that cannot be read",
        "skipped 48 files of the data: format .heic (48)",
        "the split test (12 images) is not used; `headkit evaluate HEAD --data DATA --split test` "
        "measures the head on it",
    ]


def test_reasons_beyond_the_limit_are_counted_together() -> None:
    stored = store_skipped([(f"reason {number}", 100 - number) for number in range(30)])["skipped"]
    assert sum(stored.values()) == sum(100 - number for number in range(30))
    assert len(stored) == 9
    head = random_head(metrics={"skipped": {**stored, "x" * 60: 1}})
    assert len(json.dumps(head.metrics)) < 1000


def test_regression_that_is_worse_than_the_mean_is_reported() -> None:
    (text,) = _texts({"r2": -0.25}, "regression")
    assert text == "R² is -0.2500: predicting the mean of the targets is at least as good"
    assert _texts({"r2": 0.25}, "regression") == []


def test_validation_images_among_the_training_images_are_reported() -> None:
    (text,) = _texts({"num_val_in_train": 2})
    assert text.startswith("2 validation images are also in the training data")


def test_metrics_show_how_sure_they_are() -> None:
    metrics = {"accuracy": 0.686, "accuracy_interval": [0.6132, 0.751], "log_loss": 0.5, "l2": 0.1}
    assert format_metrics(metrics) == (
        "accuracy 0.6860 (95 % interval 0.6132 to 0.7510), log loss 0.5000"
    )


def test_validation_says_where_its_images_come_from() -> None:
    held = {"validation": "held_out", "num_val": 6, "num_train": 18}
    assert format_validation(held) == "validation: 6 of 24 images, held out of the training data"
    own = {"validation": "own", "num_val": 6, "num_train": 18}
    assert format_validation(own) == "validation: 6 images from a separate validation split"
    assert format_validation({"num_val": 6}) == ""


def test_repr_shows_the_interval_and_the_weak_classes() -> None:
    metrics = {"accuracy": 0.5, "accuracy_interval": [0.4, 0.6], "recall": [1.0, 0.0, 0.1]}
    shown = repr(random_head(metrics=metrics))
    assert "accuracy=0.5 (95 % interval 0.4000 to 0.6000)" in shown
    assert "weak classes=2 (class 1, class 2)" in shown


@pytest.mark.parametrize(
    "metrics",
    [
        {"recall": ["a", "b", "c", "d", "e"], "accuracy_interval": "xy"},
        {"recall": 1, "num_few_images": "x", "fewest_images": [[99, 1], "ab", [0, None]]},
        {"skipped": [1], "num_unreadable": "many", "num_val_in_train": None, "r2": "x"},
        {"skipped": {"a\x1b[31m": "x"}, "accuracy": "high", "accuracy_interval": [None, 1]},
        {"recall": [1.0]},
    ],
)
def test_metrics_of_a_strange_file_are_no_traceback(metrics: dict[str, Any]) -> None:
    for task in ("multiclass", "regression"):
        assert all(text.isprintable() for text in _texts(metrics, task))
    assert repr(random_head(metrics=metrics))
    assert format_metrics(metrics) == ""
