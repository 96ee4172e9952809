"""Fit the temperature of logits, and measure logits against targets, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headkit.adapters.heads.tasks import Decisions, TaskName, get_task

Array = NDArray[np.float64]
Outputs: TypeAlias = dict[str, list[float | None]]


def fit_temperature(logits: Any, y: Any, task: TaskName) -> float:
    """Return the T above 0 that minimizes the mean log loss of ``logits / T``.

    Args:
        logits: Logits of validation images ``[N, num_outputs]``, a numpy array or torch tensor.
        y: Targets. multiclass: ``[N]``; multilabel: ``[N, num_outputs]`` of 0 and 1.
        task: The kind of targets.

    Returns:
        A temperature between ``statistics.LOWEST`` and ``HIGHEST``, see
        ``statistics.best_temperature``; 1 for regression, and if there are no images.
    """
    z = _to_array(logits)
    return get_task(task).best_temperature(z, _to_array(y)) if z.size else 1.0


def measure(
    logits: Any,
    y: Any,
    task: TaskName,
    temperature: float = 1.0,
    thresholds: Any = None,
) -> dict[str, Any]:
    """Measure logits against targets.

    Numbers are rounded to 6 decimal places, recalls to 4, so that a head file can store them.

    Args:
        logits: Logits ``[N, num_outputs]``, a numpy array or torch tensor.
        y: Targets. multiclass: ``[N]``; multilabel: ``[N, num_outputs]`` of 0 and 1; regression:
            ``[N, num_outputs]``.
        task: The kind of targets.
        temperature: Divisor of the logits; ignored for regression.
        thresholds: Probabilities ``[num_outputs]`` or ``[N, num_outputs]`` from which on a label
            counts as present, for multilabel. Default: 0.5.

    Returns:
        The metrics of ``Task.measure``. The recall of a class without images is None.

    Raises:
        ValueError: There are no images.
    """
    z = _to_array(logits)
    if not len(z):
        raise ValueError("logits are empty, expected at least one image")
    metrics = get_task(task).measure(z, _to_array(y), _decisions(temperature, thresholds))
    return {name: _round(value) for name, value in metrics.items()}


def measure_outputs(
    logits: Any,
    y: Any,
    task: TaskName,
    temperature: float = 1.0,
    thresholds: Any = None,
) -> Outputs:
    """Return the metrics of each output by name, see ``Task.measure_outputs``.

    Args:
        logits: See ``measure``.
        y: See ``measure``.
        task: See ``measure``.
        temperature: See ``measure``.
        thresholds: See ``measure``.

    Returns:
        Values of 6 significant digits, one per output; None if a value is undefined.
    """
    columns = get_task(task).measure_outputs(
        _to_array(logits), _to_array(y), _decisions(temperature, thresholds)
    )
    return {
        name: [None if np.isnan(one) else _shorten(one) for one in values.tolist()]
        for name, values in columns.items()
    }


def measure_more(
    logits: Any,
    y: Any,
    task: TaskName,
    temperature: float = 1.0,
    thresholds: Any = None,
) -> dict[str, float | None]:
    """Return the metrics that ``evaluate`` adds to ``measure``, see ``Task.measure_more``."""
    more = get_task(task).measure_more(
        _to_array(logits), _to_array(y), _decisions(temperature, thresholds)
    )
    return {name: _round(value) for name, value in more.items()}


@dataclass(frozen=True)
class Confusion:
    """Images of one class that were taken for another.

    Attributes:
        true: Index of the images' class.
        predicted: Index of the class that was predicted.
        count: Number of these images.
        images: Number of all images of the class ``true``.
    """

    true: int
    predicted: int
    count: int
    images: int


def most_confused(logits: Any, y: Any, limit: int | None = None) -> list[Confusion]:
    """Return the pairs of classes that are confused, the most images first.

    Args:
        logits: Logits ``[N, num_classes]`` of a multiclass head.
        y: Class indices ``[N]``.
        limit: Maximum number of pairs. Default: all.
    """
    z = _to_array(logits)
    true, best = _to_array(y).astype(np.int64), z.argmax(1)
    images = np.bincount(true, minlength=z.shape[1])
    wrong = best != true
    pairs, counts = np.unique(true[wrong] * z.shape[1] + best[wrong], return_counts=True)
    order = np.lexsort((pairs, -counts))[:limit]
    return [
        Confusion(int(row), int(column), int(count), int(images[row]))
        for (row, column), count in zip(
            (divmod(pair, z.shape[1]) for pair in pairs[order]), counts[order], strict=True
        )
    ]


def _to_array(values: Any) -> Array:
    """Return a float64 array of an array, a list or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _shorten(number: float) -> float:
    return number if isinstance(number, int) else float(f"{number:.6g}")


def _decisions(temperature: float, thresholds: Any) -> Decisions:
    return Decisions(temperature, None if thresholds is None else _to_array(thresholds))


def _round(value: Any) -> Any:
    if value is None:
        return None
    if np.ndim(value):
        return [None if np.isnan(one) else round(float(one), 4) for one in value]
    return round(float(value), 6)
