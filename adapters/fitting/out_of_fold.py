"""Measure a way to fit heads on images that the fit does not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headkit.adapters.features.labeled_features import LabeledFeatures
from headkit.adapters.features.rows import Rows
from headkit.adapters.fitting.linear.regularization_path import LinearMap

Predict = Callable[[LabeledFeatures], Tensor]
"""A function that returns logits, float64 ``[n, num_outputs]``, of features."""
Fit = Callable[[LabeledFeatures], Predict]
"""A function that fits a head to features, and makes all choices with them alone."""


@dataclass(frozen=True)
class OutOfFold:
    """Predictions for images that neither the fit nor its choices saw.

    Attributes:
        images: Numbers of the images ``[M]``, int64, ascending.
        logits: ``[M, num_outputs]``, float64.
        folds: Number of folds.
    """

    images: Tensor
    logits: Tensor
    folds: int = 0

    @classmethod
    def nothing(cls, num_outputs: int) -> OutOfFold:
        """Return the result if no image can be held out."""
        empty = torch.empty(0, num_outputs, dtype=torch.float64)
        return cls(torch.empty(0, dtype=torch.int64), empty)


@dataclass(frozen=True)
class Fitted:
    """A head on its backbone, and what it is worth.

    Attributes:
        model: The backbone with the head, which was fitted to all examples.
        choices: What was chosen, such as ``l2``, for the metrics of the head.
        held: Predictions for images that were held out. Each fold makes its own choices.
    """

    model: nn.Module
    choices: Mapping[str, Any]
    held: OutOfFold


def predict_out_of_fold(
    examples: LabeledFeatures, folds: Sequence[Tensor], fit: Fit, num_outputs: int
) -> OutOfFold:
    """Fit once for each fold without its images, and predict them.

    Args:
        examples: Features and targets; only the first view of an image is predicted.
        folds: For each fold ``[N]``, True for the rows that are held out.
        fit: How to fit.
        num_outputs: Length of the logits.
    """
    if not folds:
        return OutOfFold.nothing(num_outputs)
    images, logits = [], []
    for held in folds:
        predict = fit(examples.select(~held))
        some = examples.select(held & examples.first_view)
        images.append(some.images)
        logits.append(predict(some))
    numbers, order = torch.cat(images).sort()
    return OutOfFold(numbers, torch.cat(logits)[order], len(folds) if len(numbers) else 0)


def apply_linear(linear: LinearMap, x: Tensor | Rows) -> Tensor:
    """Return the logits of a linear map, float64 ``[N, num_outputs]``."""
    blocks = torch.split(x, 1024) if isinstance(x, Tensor) else x.blocks()
    weight, bias = linear.weight.cpu(), linear.bias.cpu()
    return torch.cat([block.cpu().double() @ weight.T + bias for block in blocks])
