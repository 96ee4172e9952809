"""Statistics that several tasks share: counts, calibration, and the search for a temperature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the temperature; outside, there are too few images or the head is broken."""
BINS = 15
"""Number of bins of the expected calibration error."""
_NORMAL_QUANTILE = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95 %."""


def wilson_interval(hits: float, trials: float) -> tuple[float, float]:
    """Return the 95 % interval of a share, Wilson's score interval (Wilson, 1927).

    Args:
        hits: Number of successes, from 0 to ``trials``.
        trials: Number of trials, above 0; a fraction if trials depend on each other.
    """
    share, z2 = hits / trials, _NORMAL_QUANTILE**2
    centre = share + z2 / (2 * trials)
    half = _NORMAL_QUANTILE * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    scale = 1 + z2 / trials
    # At the ends, rounding errors would leave the range.
    low = 0.0 if hits == 0 else (centre - half) / scale
    high = 1.0 if hits == trials else (centre + half) / scale
    return low, high


def precision_recall_f1(hits: Array, predicted: Array, actual: Array) -> tuple[Array, Array, Array]:
    """Return precision, recall and F1 of each class, float64 ``[num_classes]``.

    A value whose divisor is 0 is NaN, as in scikit-learn with ``zero_division=nan``.

    Args:
        hits: Number of images of each class that were predicted as this class.
        predicted: Number of images that were predicted as each class.
        actual: Number of images of each class.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (
            np.where(predicted > 0, hits / predicted, np.nan),
            np.where(actual > 0, hits / actual, np.nan),
            np.where(predicted + actual > 0, 2 * hits / (predicted + actual), np.nan),
        )


def average_over_classes(hits: Array, predicted: Array, actual: Array) -> dict[str, float]:
    """Return the macro averages of precision, recall and F1, as scikit-learn computes them.

    Classes that are neither actual nor predicted do not count; a value whose divisor is 0 counts
    as 0.
    """
    columns = precision_recall_f1(hits, predicted, actual)
    counted = predicted + actual > 0
    return {
        f"macro_{name}": float(np.nan_to_num(column[counted]).mean()) if counted.any() else 0.0
        for name, column in zip(("precision", "recall", "f1"), columns, strict=True)
    }


def best_temperature(
    log_loss: Callable[[float], float], slope: Callable[[float], tuple[float, float]]
) -> float:
    """Return the T above 0 that minimizes the mean log loss of ``logits / T``.

    This is temperature scaling (Guo, Pleiss, Sun and Weinberger, 2017, arXiv:1706.04599). The loss
    is convex in 1 / T, so its slope has one root. Newton's method in a bracket finds the root.

    Args:
        log_loss: Function that returns the mean log loss at an inverse temperature.
        slope: Function that returns the first and second derivative of the loss by the inverse
            temperature.

    Returns:
        A temperature between ``LOWEST`` and ``HIGHEST``. It is 1 if no other temperature is better,
        and if the loss still falls at ``LOWEST``: without wrong predictions, nothing shows how far
        the probabilities can be trusted.
    """
    low, high = 1 / HIGHEST, 1 / LOWEST
    inverse = 1.0
    if slope(low)[0] >= 0:
        inverse = low
    elif slope(high)[0] <= 0:
        return 1.0
    else:
        for _ in range(100):
            first, second = slope(inverse)
            low, high = (inverse, high) if first < 0 else (low, inverse)
            step = inverse - first / second if second > 0 else low
            # Take Newton's step if it stays in the bracket, else bisect the bracket.
            step = step if low < step < high else (low + high) / 2
            done = abs(step - inverse) <= 1e-12 * inverse
            inverse = step
            if done:
                break
    return 1 / inverse if log_loss(inverse) < log_loss(1.0) else 1.0


def assign_bins(confidence: Array) -> NDArray[np.int64]:
    """Return the index of each probability's bin, among ``BINS`` equal bins ``(low, high]``."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def calibration_error(confidence: Array, correct: NDArray[Any]) -> float:
    """Return the expected calibration error (Guo et al., 2017).

    It is the mean distance between confidence and accuracy over ``BINS`` equal bins. The number of
    probabilities in a bin is its weight.

    Args:
        confidence: Probabilities ``[N]``.
        correct: Whether each prediction was right ``[N]``.
    """
    gap = np.bincount(assign_bins(confidence), confidence - correct, minlength=BINS)
    return float(np.abs(gap).sum() / len(confidence))


def average_precision(score: Array, positive: NDArray[np.bool_]) -> float:
    """Return the average precision.

    It is the mean over positives of the precision among all images with an equal or higher score.
    """
    order = np.argsort(-score, kind="stable")
    hits = positive[order].cumsum()
    # Equal scores have no order: each of them has the precision at the last one.
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    precision = hits[last] / (last + 1)
    gained = np.diff(hits[last], prepend=0)
    return float((precision * gained).sum() / hits[-1])
