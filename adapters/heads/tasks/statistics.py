"""Statistics that several tasks share: calibration, precision, and the search for a temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the temperature: beyond, validation images are too few or the head is broken."""
BINS = 15
"""Bins of the expected calibration error."""


def best_temperature(
    log_loss: Callable[[float], float], slope: Callable[[float], tuple[float, float]]
) -> float:
    """Return the T above 0 that minimizes the mean log loss of ``logits / T``.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger, 2017, arXiv:1706.04599). The loss is
    convex in 1 / T, so that its slope has one root: Newton's method in a bracket finds it.

    Args:
        log_loss: the mean log loss at an inverse temperature.
        slope: its first and second derivative by the inverse temperature.

    Returns:
        Between ``LOWEST`` and ``HIGHEST``; 1 where no other temperature is better, and where the
        loss falls down to ``LOWEST``: if no image is mistaken, nothing shows how far the
        probabilities can be trusted.
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
            # Newton's step where it stays in the bracket, else half of the bracket.
            step = step if low < step < high else (low + high) / 2
            done = abs(step - inverse) <= 1e-12 * inverse
            inverse = step
            if done:
                break
    return 1 / inverse if log_loss(inverse) < log_loss(1.0) else 1.0


def assign_bins(confidence: Array) -> NDArray[np.int64]:
    """Return which of ``BINS`` equal bins, ``(low, high]``, each probability lies in."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def calibration_error(confidence: Array, correct: NDArray[Any]) -> float:
    """Return the expected calibration error (Guo et al., 2017).

    It is the mean distance of confidence and accuracy over ``BINS`` equal bins, each weighted by
    how many probabilities it holds.

    Args:
        confidence: ``[N]``, probabilities.
        correct: ``[N]``, whether each came true.
    """
    gap = np.bincount(assign_bins(confidence), confidence - correct, minlength=BINS)
    return float(np.abs(gap).sum() / len(confidence))


def average_precision(score: Array, positive: NDArray[np.bool_]) -> float:
    """Return the mean over positives of the precision among all that score at least as high."""
    order = np.argsort(-score, kind="stable")
    hits = positive[order].cumsum()
    # Nothing ranks equal scores: all of them count from the first on.
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    precision = hits[last] / (last + 1)
    gained = np.diff(hits[last], prepend=0)
    return float((precision * gained).sum() / hits[-1])
