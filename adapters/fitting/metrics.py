"""Fit the temperature of logits, and measure logits against targets, without torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headkit.adapters.heads.tasks import TaskName, get_task

Array = NDArray[np.float64]


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


def measure(logits: Any, y: Any, task: TaskName, temperature: float = 1.0) -> dict[str, Any]:
    """Measure logits against targets.

    Numbers are rounded to 6 decimal places, recalls to 4, so that a head file can store them.

    Args:
        logits: Logits ``[N, num_outputs]``, a numpy array or torch tensor.
        y: Targets. multiclass: ``[N]``; multilabel: ``[N, num_outputs]`` of 0 and 1; regression:
            ``[N, num_outputs]``.
        task: The kind of targets.
        temperature: Divisor of the logits; ignored for regression.

    Returns:
        The metrics of ``Task.measure``. The recall of a class without images is None.

    Raises:
        ValueError: There are no images.
    """
    z = _to_array(logits)
    if not len(z):
        raise ValueError("logits are empty, expected at least one image")
    metrics = get_task(task).measure(z, _to_array(y), temperature)
    return {name: _round(value) for name, value in metrics.items()}


def _to_array(values: Any) -> Array:
    """Return a float64 array of an array, a list or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _round(value: Any) -> Any:
    if value is None:
        return None
    if np.ndim(value):
        return [None if np.isnan(one) else round(float(one), 4) for one in value]
    return round(float(value), 6)
