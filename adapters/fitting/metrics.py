"""Calibrate logits by a temperature, and measure them against targets. Needs no torch."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from headkit.adapters.heads.head import Task

Array = NDArray[np.float64]

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the temperature: beyond, validation images are too few or the head is broken."""
BINS = 15
"""Bins of the expected calibration error."""


def temperature(logits: Any, y: Any, task: Task) -> float:
    """Return the T above 0 that minimizes the mean log loss of ``logits / T``.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger, 2017, arXiv:1706.04599). The loss is
    convex in 1 / T, so that its slope has one root: Newton's method in a bracket finds it.

    Args:
        logits: ``[N, num_outputs]``, numpy array or torch tensor, of validation images.
        y: targets. multiclass: ``[N]``; multilabel: ``[N, num_outputs]`` of 0 and 1.
        task: what the targets are.

    Returns:
        Between ``LOWEST`` and ``HIGHEST``; 1 for regression, without an image, where no other
        temperature is better, and where the loss falls down to ``LOWEST``: if no image is
        mistaken, nothing tells how far the probabilities can be trusted.
    """
    z, y = _array(logits), _array(y)
    if task == "regression" or not z.size:
        return 1.0
    low, high = 1 / HIGHEST, 1 / LOWEST
    inverse = 1.0
    if _slope(z, y, task, low)[0] >= 0:
        inverse = low
    elif _slope(z, y, task, high)[0] <= 0:
        return 1.0
    else:
        for _ in range(100):
            slope, curvature = _slope(z, y, task, inverse)
            low, high = (inverse, high) if slope < 0 else (low, inverse)
            step = inverse - slope / curvature if curvature > 0 else low
            # Newton's step where it stays in the bracket, else half of the bracket.
            step = step if low < step < high else (low + high) / 2
            done = abs(step - inverse) <= 1e-12 * inverse
            inverse = step
            if done:
                break
    better = _log_loss(z * inverse, y, task) < _log_loss(z, y, task)
    return 1 / inverse if better else 1.0


def metrics(logits: Any, y: Any, task: Task, temperature: float = 1.0) -> dict[str, Any]:
    """Measure logits against targets.

    Numbers are rounded to 6 digits, recalls to 4, so that they can be kept in a head file.

    Args:
        logits: ``[N, num_outputs]``, numpy array or torch tensor.
        y: targets. multiclass: ``[N]``; multilabel: ``[N, num_outputs]`` of 0 and 1; regression:
            ``[N, num_outputs]``.
        task: what the targets are.
        temperature: logits are divided by it first (not for regression).

    Returns:
        multiclass: ``accuracy``, ``log_loss``, ``ece`` (expected calibration error of the most
        likely class, 15 equal bins; Guo et al., 2017), ``recall`` of each class.
        multilabel: ``exact_match`` (share of images with all labels right), ``log_loss`` (mean
        over outputs), ``macro_f1`` and ``micro_f1`` (at a probability of 0.5),
        ``mean_average_precision`` (of the labels that some image has), ``ece`` (over all pairs of
        image and label), ``recall`` of each label.
        regression: ``mse``, ``mae``, ``r2`` (mean over outputs).
        A recall is None for a class without an image, and so is ``mean_average_precision`` if no
        image has a label.

    Raises:
        ValueError: there is no image.
    """
    z, y = _array(logits), _array(y)
    if not len(z):
        raise ValueError("no image to measure: logits are empty")
    if task == "regression":
        return _regression(z, y)
    z = z / temperature
    measured = _multiclass(z, y.astype(np.int64)) if task == "multiclass" else _multilabel(z, y)
    recall = [None if np.isnan(value) else round(float(value), 4) for value in measured["recall"]]
    return {**{key: _rounded(value) for key, value in measured.items()}, "recall": recall}


def calibration_error(confidence: Any, correct: Any) -> float:
    """Return the expected calibration error (Guo et al., 2017).

    It is the mean distance of confidence and accuracy over ``BINS`` equal bins, ``(low, high]``,
    each weighted by how many it holds.

    Args:
        confidence: ``[N]``, probabilities, numpy array or torch tensor.
        correct: ``[N]``, whether each came true.
    """
    promised, came_true = _array(confidence), _array(correct)
    bins = np.clip(np.ceil(promised * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gap = np.bincount(bins, promised - came_true, minlength=BINS)
    return float(np.abs(gap).sum() / len(promised))


def _multiclass(z: Array, y: NDArray[np.int64]) -> dict[str, Any]:
    p, best = _softmax(z), z.argmax(1)
    right = best == y
    images = np.bincount(y, minlength=z.shape[1])
    found = np.bincount(y[right], minlength=z.shape[1])
    return {
        "accuracy": right.mean(),
        "log_loss": _log_loss(z, y, "multiclass"),
        "ece": calibration_error(p[np.arange(len(z)), best], right),
        "recall": np.where(images > 0, found / np.maximum(images, 1), np.nan),
    }


def _multilabel(z: Array, y: Array) -> dict[str, Any]:
    predicted, positive = z > 0, y > 0
    hits = (predicted & positive).sum(0)
    named = predicted.sum(0) + positive.sum(0)
    f1 = 2 * hits / np.maximum(named, 1)
    present = positive.any(0)
    precisions = [_average_precision(z[:, k], positive[:, k]) for k in np.flatnonzero(present)]
    return {
        "exact_match": (predicted == positive).all(1).mean(),
        "log_loss": _log_loss(z, y, "multilabel"),
        "macro_f1": f1.mean(),
        "micro_f1": 2 * hits.sum() / max(1, named.sum()),
        "mean_average_precision": np.mean(precisions) if precisions else None,
        "ece": calibration_error(_sigmoid(z).ravel(), positive.ravel()),
        "recall": np.where(present, hits / np.maximum(positive.sum(0), 1), np.nan),
    }


def _regression(z: Array, y: Array) -> dict[str, Any]:
    error = z - y
    unexplained = np.square(error).sum(0)
    total = np.square(y - y.mean(0)).sum(0)
    # An output that never varies: 1 if it is met exactly, else 0, as scikit-learn has it.
    r2 = np.where(total > 0, 1 - unexplained / np.where(total > 0, total, 1), unexplained == 0)
    return {
        "mse": _rounded(np.square(error).mean()),
        "mae": _rounded(np.abs(error).mean()),
        "r2": _rounded(r2.mean()),
    }


def _array(values: Any) -> Array:
    """Return float64 numbers of an array, a list or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _rounded(value: Any) -> Any:
    return round(float(value), 6) if np.ndim(value) == 0 and value is not None else value


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return cast(Array, e / e.sum(1, keepdims=True))


def _sigmoid(z: Array) -> Array:
    return cast(Array, np.exp(-np.logaddexp(0, -z)))


def _log_loss(z: Array, y: NDArray[Any], task: Task) -> float:
    """Return the mean over images, multilabel over outputs too."""
    if task == "multilabel":
        return float((np.logaddexp(0, z) - y * z).mean())
    top = z.max(1)
    logs = top + np.log(np.exp(z - top[:, None]).sum(1))
    return float((logs - z[np.arange(len(z)), y.astype(np.int64)]).mean())


def _slope(z: Array, y: Array, task: Task, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the loss by the inverse temperature."""
    if task == "multilabel":
        p = _sigmoid(z * inverse)
        return float(((p - y) * z).mean()), float((p * (1 - p) * z * z).mean())
    p = _softmax(z * inverse)
    mean = (p * z).sum(1)
    true = z[np.arange(len(z)), y.astype(np.int64)]
    return float((mean - true).mean()), float(((p * z * z).sum(1) - mean**2).mean())


def _average_precision(score: Array, positive: NDArray[np.bool_]) -> float:
    """Return the mean over positives of the precision among all that score at least as high."""
    order = np.argsort(-score, kind="stable")
    hits = positive[order].cumsum()
    # Equal scores cannot be told apart: all of them count from the first on.
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    precision = hits[last] / (last + 1)
    gained = np.diff(hits[last], prepend=0)
    return float((precision * gained).sum() / hits[-1])
