"""Classes of a trained head are selected, removed and renamed without torch and training."""

from typing import Any

import numpy as np
import pytest

import headkit
from headkit.adapters.backbone.level import Level
from headkit.adapters.heads.head import Head
from tests.heads import random_head

GENERATOR = np.random.default_rng(7)
X = GENERATOR.normal(size=(6, 5)).astype(np.float32)


def random(*shape: int) -> Any:
    return GENERATOR.normal(size=shape).astype(np.float32)


def head_of_kind(kind: str) -> Head:
    tensors: dict[str, Any] = {
        "own": {"fc.weight": random(4, 5), "fc.bias": random(4)},
        "linear": {"head.fc.weight": random(4, 5), "head.fc.bias": random(4)},
        "cosine": {"fc.weight": random(4, 5), "fc.scale": np.float32(7)},
        "mlp": {
            "fc.fc1.weight": random(8, 5),
            "fc.fc1.bias": random(8),
            "fc.fc2.weight": random(4, 8),
            "fc.fc2.bias": random(4),
        },
        "levels": {"level_head.weight": random(4, 11), "level_head.bias": random(4)},
    }[kind]
    levels = {}
    if kind == "levels":
        levels = {"levels": (Level("last", 5), Level("layer1", 6, "NCHW"))}
    return random_head(
        4,
        tensors=tensors,
        kind="linear" if kind == "levels" else kind,
        label_names=("ant", "bee", "cat", "dog"),
        temperature=2.0,
        **levels,
    )


def logits(head: Head, x: Any) -> Any:
    """The formulas of docs/head-file.md in NumPy; the erf is that of the standard library."""
    from math import erf

    tensors = {name.rpartition("fc.")[2]: value for name, value in head.tensors.items()}
    if head.levels:
        tensors = {n.removeprefix("level_head."): v for n, v in tensors.items()}
        x = np.concatenate([x, x[:, :1] * np.arange(6)], 1)
    if head.kind == "cosine":
        weight = tensors["weight"] / np.linalg.norm(tensors["weight"], axis=1, keepdims=True)
        return tensors["scale"] * (x / np.linalg.norm(x, axis=1, keepdims=True)) @ weight.T
    if head.kind == "mlp":
        h = x @ head.tensors["fc.fc1.weight"].T + head.tensors["fc.fc1.bias"]
        h = h * 0.5 * (1 + np.vectorize(erf)(h / np.sqrt(2)))
        return h @ head.tensors["fc.fc2.weight"].T + head.tensors["fc.fc2.bias"]
    return x @ tensors["weight"].T + tensors["bias"]


@pytest.mark.parametrize("kind", ["own", "linear", "cosine", "mlp", "levels"])
def test_selected_classes_have_the_logits_that_they_had(kind: str) -> None:
    head = head_of_kind(kind)
    before = logits(head, X)
    selected = head.select(["dog", "ant"])
    assert selected.label_names == ("dog", "ant")
    assert selected.num_classes == 2
    assert np.abs(logits(selected, X) - before[:, [3, 0]]).max() <= 1e-6
    assert selected.temperature == 2.0
    assert np.abs(logits(head.drop(["bee"]), X) - before[:, [0, 2, 3]]).max() <= 1e-6
    assert Head.from_json(selected.tensors, selected.to_json()) == selected
    assert head.select(head.label_names or ()) == head


def test_rows_of_two_classifiers_and_of_a_convolution_are_selected() -> None:
    distilled = {
        "head.weight": random(3, 5),
        "head.bias": random(3),
        "head_dist.weight": random(3, 5),
        "head_dist.bias": random(3),
    }
    selected = random_head(tensors=distilled).select(["class 2", "class 0"])
    for name, tensor in distilled.items():
        assert np.array_equal(selected.tensors[name], tensor[[2, 0]])
    convolution = {"fc.weight": random(3, 5, 1, 1), "fc.bias": random(3)}
    selected = random_head(tensors=convolution).drop(["class 1"])
    assert np.array_equal(selected.tensors["fc.weight"], convolution["fc.weight"][[0, 2]])


def test_norm_in_front_of_the_classifier_stays() -> None:
    tensors = {
        "head.bn.weight": random(5),
        "head.bn.bias": random(5),
        "head.linear.weight": random(3, 5),
        "head.linear.bias": random(3),
    }
    selected = random_head(tensors=tensors).drop(["class 0"])
    assert np.array_equal(selected.tensors["head.bn.weight"], tensors["head.bn.weight"])
    assert np.array_equal(selected.tensors["head.linear.bias"], tensors["head.linear.bias"][1:])


@pytest.mark.parametrize(
    "tensors",
    [
        {"head.fc1.weight": (8, 5), "head.fc2.weight": (3, 8)},
        {"head.fc1.weight": (3, 5), "head.fc2.weight": (3, 3)},
        {"head.fc.weight": (3, 5), "head.fc.bias": (3,), "head.norm.weight": (3,)},
        {"head.norm.weight": (3,), "head.fc.weight": (3, 3)},
    ],
)
def test_own_classifier_that_may_have_hidden_layers_is_refused(
    tensors: dict[str, tuple[int, ...]],
) -> None:
    width = 3 if tensors.get("head.fc.weight") == (3, 3) else 5
    head = random_head(
        tensors={name: random(*shape) for name, shape in tensors.items()}, num_features=width
    )
    with pytest.raises(headkit.HeadFormatError, match="expected one linear layer: fit a head of"):
        head.drop(["class 0"])


METRICS = {
    "accuracy": 0.9,
    "log_loss": 0.3,
    "recall": [0.1, 0.2, 0.3],
    "num_few_images": 1,
    "fewest_images": [[2, 5]],
}


def test_metrics_of_missing_classes_go_and_those_of_another_order_stay() -> None:
    head = random_head(metrics=METRICS)
    assert head.drop(["class 1"]).metrics == {}
    turned = head.select(["class 2", "class 0", "class 1"])
    assert turned.metrics == {
        **METRICS,
        "recall": [0.3, 0.1, 0.2],
        "fewest_images": [[0, 5]],
    }
    labels = head.with_changes(task="multilabel", thresholds=(0.25, 0.5, 0.75))
    kept = labels.select(["class 2", "class 0"])
    assert kept.metrics == {"recall": [0.3, 0.1]}
    assert kept.thresholds == (0.75, 0.25)
    assert labels.rename({"class 0": "x"}).thresholds == (0.25, 0.5, 0.75)
    assert labels.select("class 2").num_classes == 1


def test_renamed_head_has_the_same_tensors_and_metrics() -> None:
    head = random_head(metrics=METRICS)
    renamed = head.rename({"class 0": "class 2", "class 2": "class 0"})
    assert renamed.label_names == ("class 2", "class 1", "class 0")
    assert renamed.metrics == METRICS
    assert renamed.tensors == head.tensors
    assert renamed.rename({"class 2": "class 0", "class 0": "class 2"}) == head


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda head: head.select(["cat"]), "no label 'cat', expected some of its 3 labels: class"),
        (lambda head: head.drop(["cat", "x"]), "no label 'cat', 'x'"),
        (lambda head: head.rename({"cat": "x"}), "no label 'cat'"),
        (lambda head: head.rename({"class 0": "class 1"}), "two classes would be called 'class 1'"),
        (lambda head: head.rename([("class 0", "x")]), "expected a mapping from old to new"),
        (lambda head: head.select([]), "labels is empty"),
        (lambda head: head.select(["class 1", "class 1"]), "'class 1' is selected twice"),
        (lambda head: head.select("class 1"), "only 'class 1' is left, expected at least two"),
        (lambda head: head.drop(["class 0", "class 1"]), "only 'class 2' is left"),
        (lambda head: head.drop(head.label_names), "all 3 classes are dropped"),
        (
            lambda head: head.with_changes(label_names=None).select(["a"]),
            r"no label names, but 3 classes: name them first with head\.with_changes",
        ),
        (
            lambda head: head.with_changes(label_names=("a", "a", "b")).select(["b", "a"]),
            "2 classes of the head are called 'a', expected one",
        ),
    ],
)
def test_what_cannot_be_done_is_said(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(random_head())


def test_single_target_of_a_regression_head_is_selected() -> None:
    head = random_head(task="regression", metrics={"mae": 0.5})
    selected = head.select(["class 1"])
    assert selected.metrics == {}
    assert np.array_equal(selected.tensors["fc.weight"], head.tensors["fc.weight"][[1]])
