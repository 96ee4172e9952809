"""Weights of classes in training, as they are asked for."""

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
    asked: ClassWeights | None, source: ImageDataset
) -> Tensor | Literal["balanced"] | None:
    """Return the weights by number of the class, or what was asked for instead of weights.

    Raises:
        DataError: the data have no classes, or lack a class that has a weight.
        ValueError: a weight is not positive, or ``asked`` is another word than ``balanced``.
    """
    if asked is None:
        return None
    if not get_task(source.task).has_classes:
        raise DataError("a regression has no classes to weigh")
    if isinstance(asked, str):
        if asked != "balanced":
            raise ValueError(f"class_weights is {asked!r}, expected 'balanced' or weights by label")
        return "balanced"
    unknown = sorted(set(asked) - set(source.label_names))
    if unknown:
        raise DataError(f"class_weights names {', '.join(unknown[:5])}, which {source.name} lacks")
    weights = [float(asked.get(name, 1)) for name in source.label_names]
    if not all(weight > 0 for weight in weights):
        raise ValueError("class_weights has a weight that is not positive")
    return torch.tensor(weights)
