"""Calibrate logits by a temperature, and measure them against targets. Needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headkit.adapters.heads.tasks import TaskName, get_task

Array = NDArray[np.float64]


def temperature(logits: Any, y: Any, task: TaskName) -> float:
    """Return the T above 0 that minimizes the mean log loss of ``logits / T``.

    Args:
        logits: ``[N, num_outputs]``, numpy array or torch tensor, of validation images.
        y: targets. multiclass: ``[N]``; multilabel: ``[N, num_outputs]`` of 0 and 1.
        task: what the targets are.

    Returns:
        Between ``statistics.LOWEST`` and ``HIGHEST``, see ``statistics.best_temperature``; 1 for
        regression and without an image.
    """
    z = _array(logits)
    return get_task(task).best_temperature(z, _array(y)) if z.size else 1.0


def metrics(logits: Any, y: Any, task: TaskName, temperature: float = 1.0) -> dict[str, Any]:
    """Measure logits against targets.

    Numbers are rounded to 6 digits, recalls to 4, so that they can be kept in a head file.

    Args:
        logits: ``[N, num_outputs]``, numpy array or torch tensor.
        y: targets. multiclass: ``[N]``; multilabel: ``[N, num_outputs]`` of 0 and 1; regression:
            ``[N, num_outputs]``.
        task: what the targets are.
        temperature: logits are divided by it first (not for regression).

    Returns:
        What ``measure`` of the task returns. A recall is None for a class without an image.

    Raises:
        ValueError: there is no image.
    """
    z = _array(logits)
    if not len(z):
        raise ValueError("no image to measure: logits are empty")
    measured = get_task(task).measure(z, _array(y), temperature)
    return {name: _rounded(value) for name, value in measured.items()}


def _array(values: Any) -> Array:
    """Return float64 numbers of an array, a list or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def _rounded(value: Any) -> Any:
    if value is None:
        return None
    if np.ndim(value):
        return [None if np.isnan(one) else round(float(one), 4) for one in value]
    return round(float(value), 6)
