"""Choose the probability from which on each label of a multilabel head counts as present."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
F1 = "f1"
UNDECIDED = 0.5
"""Threshold of a label that all images have, or none."""


def choose_thresholds(scores: Array, y: Array, goal: str | float = F1) -> list[float]:
    """Return a threshold for each label; a label is present if its score is at least as high.

    A threshold lies half way between the scores of two images.

    Args:
        scores: Probabilities of images that the head has not seen, ``[N, num_outputs]``.
        y: Labels of these images, 0 and 1, ``[N, num_outputs]``.
        goal: ``f1`` for the threshold with the highest F1 score; or a precision between 0 and 1,
            for the lowest threshold that reaches it. If none does, the one with the highest
            precision.

    Raises:
        ValueError: ``goal`` is neither.
    """
    check_goal(goal)
    return [_choose(scores[:, k], y[:, k] > 0.5, goal) for k in range(scores.shape[1])]


def check_goal(goal: str | float) -> None:
    """Raise ``ValueError`` unless ``goal`` is ``f1`` or a precision."""
    if goal != F1 and not (isinstance(goal, int | float) and 0 < goal <= 1):
        raise ValueError(
            f"thresholds is {goal!r}, expected 'f1' or a precision above 0 and at most 1"
        )


def _choose(score: Array, positive: NDArray[np.bool_], goal: str | float) -> float:
    if not positive.any() or positive.all():
        return UNDECIDED
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    # A cut lies only between different scores: images with equal scores have no order.
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    hits = positive[order].cumsum()[last]
    predicted = last + 1
    precision = hits / predicted
    if goal == F1:
        best = int(np.argmax(2 * hits / (predicted + positive.sum())))
    else:
        reached = np.flatnonzero(precision >= float(goal))
        best = int(reached[-1]) if len(reached) else int(np.argmax(precision))
    above = ranked[last[best]]
    below = ranked[last[best] + 1] if last[best] + 1 < len(ranked) else 0.0
    return round(float((above + below) / 2), 6)
