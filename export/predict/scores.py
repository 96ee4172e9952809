"""Turn logits into scores, and scores into predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np

from headkit.adapters.errors import ExportError
from headkit.adapters.heads.tasks import DEFAULT, get_task
from headkit.export.graph.description.head_info import HeadInfo

Array = np.ndarray[Any, Any]


class Prediction(TypedDict):
    """A class of an image, and its probability. For regression, an output and its value.

    For a multilabel head with thresholds, ``present`` is True if the score reaches the threshold of
    the label.
    """

    label: str
    score: float
    present: NotRequired[bool]


@dataclass(frozen=True)
class Result:
    """What a head says about an image, or why the image cannot be read.

    Attributes:
        image: Path of the image, or its number among the images.
        head: Name of the head; empty for the own head of a merged or swappable model, and for an
            image that cannot be read.
        predictions: The best classes, the best first.
        error: The reason why the image cannot be read, or None.
    """

    image: str
    head: str
    predictions: list[Prediction]
    error: str | None = None


def compute_scores(description: Mapping[str, Any], logits: Array) -> Array:
    """Return the scores for logits ``[batch, num_classes]``, by a head's task and temperature.

    Scores are probabilities, or predicted values for regression.
    """
    task = get_task(description.get("task", DEFAULT))
    return task.scores(logits, description.get("temperature", 1.0))


def select_top(info: HeadInfo, row: Sequence[float], top_k: int) -> list[Prediction]:
    """Return the best classes of one row of scores, the best first.

    The outputs of a regression do not compete: all of them are returned, in their own order.
    """
    if not info.task.has_classes:
        return [Prediction(label=info.label(i), score=float(one)) for i, one in enumerate(row)]
    order = np.argsort(-np.asarray(row), kind="stable")[:top_k]
    best = [Prediction(label=info.label(int(i)), score=float(row[i])) for i in order]
    thresholds = info.description.get("thresholds")
    for prediction, i in zip(best, order.tolist(), strict=True):
        if thresholds is not None:
            prediction["present"] = prediction["score"] >= thresholds[i]
    return best


def check_logits(info: HeadInfo, logits: Array) -> Array:
    """Return logits unchanged if they are those of a head: one finite number per class.

    Raises:
        ExportError: The model computes something else.
    """
    if logits.ndim != 2 or logits.shape[1] != info.num_classes:
        raise ExportError(
            f"the model computes logits of the shape {list(logits.shape)}, expected "
            f"{info.num_classes} numbers per image: export the model again"
        )
    if not np.isfinite(logits).all():
        raise ExportError(
            "the model computes NaN or infinite logits: export it in the precision fp32, or check "
            "its weights"
        )
    return logits
