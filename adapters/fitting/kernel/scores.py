"""From the predictions of a ridge regression to logits, and to the loss of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, softplus

from headkit.adapters.heads.tasks import Task

UNIT = 20.0
"""Factor from predictions of 0 and 1 to logits if nothing tells how reliable the predictions are.

The temperature that is searched for multiplies it, so its bounds fit predictions of 0 and 1."""
PLATT_STEPS = 30
PLATT_PENALTY = 1e-2
"""Strength of the penalty on the distance from ``UNIT``, relative to ``UNIT²`` and one image."""


@dataclass(frozen=True)
class Calibration:
    """The affine map from predictions to logits: ``prediction * factor + shift``, for each output.

    Attributes:
        factor: ``[num_outputs]``, float64.
        shift: ``[num_outputs]``, float64.
    """

    factor: Tensor
    shift: Tensor

    def logits(self, prediction: Tensor) -> Tensor:
        """Return logits ``[N, num_outputs]``."""
        return prediction * self.factor + self.shift


def encode(y: Tensor, task: Task, num_outputs: int) -> Tensor:
    """Return what the regression predicts, float64 ``[N, num_outputs]``: classes as 0 and 1."""
    return one_hot(y.long(), num_outputs).double() if task.exclusive else y.double()


def calibrate(prediction: Tensor, y: Tensor, task: Task) -> Calibration:
    """Return the calibration with the least log loss on predictions for images that were left out.

    Classes share one factor, as in temperature scaling (Guo et al., 2017). Labels have a factor and
    a shift each, as in Platt scaling (Platt, 1999). Numbers stay as they are.

    Args:
        prediction: ``[N, num_outputs]``; N may be 0.
        y: Targets of these images, see ``Task``.
        task: The kind of targets.
    """
    outputs = prediction.shape[1]
    ones = torch.ones(outputs, dtype=torch.float64)
    if not task.has_classes:
        return Calibration(ones, torch.zeros_like(ones))
    if task.exclusive:
        temperature = 1.0
        if len(y):
            logits = (UNIT * prediction).numpy()
            temperature = task.best_temperature(logits, y.numpy())
        return Calibration(ones * UNIT / temperature, torch.zeros_like(ones))
    return _platt(prediction, y.double(), task)


def losses(prediction: Tensor, y: Tensor, task: Task, calibration: Calibration) -> Tensor:
    """Return the loss of each image ``[N]``, by which levels are compared.

    It is the log loss; for labels, the mean over labels. For numbers, it is the squared error
    relative to the variance of each output, the mean over outputs.
    """
    if task.exclusive:
        return cross_entropy(calibration.logits(prediction), y.long(), reduction="none")
    if task.has_classes:
        z = calibration.logits(prediction)
        return (softplus(z) - y.double() * z).mean(1)
    variance = y.double().var(0, correction=0).clamp(min=1e-12)
    return ((prediction - y.double()).square() / variance).mean(1)


def _platt(prediction: Tensor, y: Tensor, task: Task) -> Calibration:
    """Fit ``sigmoid(factor * prediction + shift)`` for each label by Newton's method.

    A penalty keeps factor and shift near ``UNIT`` and ``-UNIT / 2`` if the labels are separated. A
    label that all images have, or none, gets the prior logit of ``Task.learnable_outputs``.
    """
    count, outputs = prediction.shape
    start = torch.tensor([UNIT, -UNIT / 2], dtype=torch.float64)
    theta = start.repeat(outputs, 1)
    if count:
        design = torch.stack([prediction, torch.ones_like(prediction)], 2)  # [N, outputs, 2]
        penalty = PLATT_PENALTY * torch.eye(2, dtype=torch.float64)
        for _ in range(PLATT_STEPS):
            z = (design * theta).sum(2)
            p = z.sigmoid()
            gradient = ((p - y)[:, :, None] * design).sum(0) + (theta - start) @ penalty
            curvature = torch.einsum("nk,nki,nkj->kij", p * (1 - p), design, design) + penalty
            step = torch.linalg.solve(curvature, gradient)
            theta = theta - step.clamp(-UNIT, UNIT)
            if float(step.abs().max()) < 1e-9:
                break
    factor, shift = theta[:, 0].clamp(min=0), theta[:, 1]
    learnable, prior = task.learnable_outputs(y, outputs)
    constant = torch.ones(outputs, dtype=torch.bool)
    constant[learnable] = False
    return Calibration(
        torch.where(constant, 0.0, factor), torch.where(constant, prior.double(), shift)
    )


def mean_squared_error(prediction: Tensor, y: Tensor) -> float:
    """Return the mean over images of the squared error, summed over outputs.

    Args:
        prediction: ``[N, num_outputs]``.
        y: What ``encode`` returned for these images.
    """
    return float((prediction - y).square().sum(1).mean())


def standard_error(difference: Tensor) -> float:
    """Return the standard error of the mean of ``[N]``; infinite for fewer than two images."""
    if len(difference) < 2:
        return float("inf")
    return float(difference.std()) / float(np.sqrt(len(difference)))
