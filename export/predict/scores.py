"""Turn logits into scores, and scores into predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from headkit.adapters.heads.tasks import DEFAULT, get_task
from headkit.export.graph.metadata import HeadInfo

Array = np.ndarray[Any, Any]


class Prediction(TypedDict):
    """A class of an image, and its probability. For regression, an output and its value."""

    label: str
    score: float


def compute_scores(description: Mapping[str, Any], logits: Array) -> Array:
    """Return the scores for logits ``[batch, num_classes]``, by a head's task and temperature.

    Scores are probabilities, or predicted values for regression.
    """
    task = get_task(description.get("task", DEFAULT))
    return task.scores(logits, description.get("temperature", 1.0))


def select_top(info: HeadInfo, row: Sequence[float], top_k: int) -> list[Prediction]:
    """Return the best classes of one row of scores, the best first."""
    order = np.argsort(-np.asarray(row), kind="stable")[:top_k]
    names = info.label_names
    return [Prediction(label=names[i], score=float(row[i])) for i in order]
