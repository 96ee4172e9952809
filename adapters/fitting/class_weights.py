"""Check the weights of classes that the user requests for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.errors import DataError
from headkit.adapters.heads.tasks import get_task

ClassWeights = Literal["balanced"] | Mapping[str, float]


def check_class_weights(
    class_weights: ClassWeights | None, dataset: ImageDataset
) -> Tensor | Literal["balanced"] | None:
    """Return one weight per class, in the order of the label names; or ``balanced`` or None.

    Raises:
        DataError: The data have no classes, or lack a class that has a weight.
        ValueError: A weight is not positive, or ``class_weights`` is a word other than
            ``balanced``.
    """
    if class_weights is None:
        return None
    if not get_task(dataset.task).has_classes:
        raise DataError(
            "class_weights needs classes, but the task is regression: remove class_weights"
        )
    if isinstance(class_weights, str):
        if class_weights != "balanced":
            raise ValueError(
                f"class_weights is {class_weights!r}, expected 'balanced' or weights by label"
            )
        return "balanced"
    unknown = sorted(set(class_weights) - set(dataset.label_names))
    if unknown:
        raise DataError(
            f"class_weights has labels that {dataset.name} does not have: {', '.join(unknown[:5])}"
        )
    weights = [float(class_weights.get(name, 1)) for name in dataset.label_names]
    for name, weight in zip(dataset.label_names, weights, strict=True):
        if not weight > 0:
            raise ValueError(
                f"class_weights has the weight {weight} for {name}, expected a positive number"
            )
    return torch.tensor(weights)
