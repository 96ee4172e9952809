"""From the predictions of a ridge regression to logits, and to the loss of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot, softplus

from headkit.adapters.heads.tasks import Task
from headkit.adapters.heads.tasks.statistics import HIGHEST

UNIT = 20.0
"""Factor from predictions of 0 and 1 to logits if nothing tells how reliable the predictions are.

The temperature that is searched for multiplies it, so its bounds fit predictions of 0 and 1."""
LEAST_FACTOR = UNIT / HIGHEST
"""Smallest factor of a label, as small as that of classes at the highest temperature."""
PLATT_STEPS, HALVINGS = 50, 60
PLATT_PENALTY = 1e-2
"""Strength of the penalty on half of the squared distance from ``UNIT``, beside the log loss of all
images."""


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
    """Fit ``sigmoid(factor * prediction + shift)`` for each label by logistic regression.

    A penalty keeps factor and shift near ``UNIT`` and ``-UNIT / 2`` if the labels are separated.
    Predictions that are worse than none get the factor ``LEAST_FACTOR``, so the images stay in the
    order of the regression. A label that all images have, or none, gets the prior logit of
    ``Task.learnable_outputs``.
    """
    count, outputs = prediction.shape
    start = torch.tensor([UNIT, -UNIT / 2], dtype=torch.float64)
    theta = start.repeat(outputs, 1)
    if count:
        ones = torch.ones_like(prediction)
        theta = _regress(torch.stack([prediction, ones], 2), torch.zeros_like(prediction), y, start)
        least = LEAST_FACTOR * prediction
        shift = _regress(ones[:, :, None], least, y, start[1:])
        bounded = torch.cat([torch.full_like(shift, LEAST_FACTOR), shift], 1)
        theta = torch.where(theta[:, :1] < LEAST_FACTOR, bounded, theta)
    factor, shift = theta.unbind(1)
    learnable, prior = task.learnable_outputs(y, outputs)
    constant = torch.ones(outputs, dtype=torch.bool)
    constant[learnable] = False
    return Calibration(
        torch.where(constant, 0.0, factor), torch.where(constant, prior.double(), shift)
    )


def _regress(design: Tensor, offset: Tensor, y: Tensor, start: Tensor) -> Tensor:
    """Return the penalized logistic regression of each label, ``[outputs, P]``, float64.

    The loss is convex. A full step of Newton's method can miss the minimum by far where sigmoids
    are saturated, so each label halves its step until its loss falls.

    Args:
        design: Inputs ``[N, outputs, P]``.
        offset: What is added to the logits, ``[N, outputs]``.
        y: 0 or 1, ``[N, outputs]``.
        start: The coefficients to which the penalty pulls, ``[P]``.
    """
    penalty = PLATT_PENALTY * torch.eye(len(start), dtype=torch.float64)

    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor]:
        z = (design * theta).sum(2) + offset
        distance = (theta - start).square().sum(1)
        return z, (softplus(z) - y * z).sum(0) + PLATT_PENALTY / 2 * distance

    theta = start.repeat(y.shape[1], 1)
    z, loss = evaluate(theta)
    for _ in range(PLATT_STEPS):
        p = z.sigmoid()
        gradient = ((p - y)[:, :, None] * design).sum(0) + (theta - start) @ penalty
        curvature = torch.einsum("nk,nki,nkj->kij", p * (1 - p), design, design) + penalty
        step = torch.linalg.solve(curvature, gradient)
        for _ in range(HALVINGS):
            z, new = evaluate(theta - step)
            worse = ~(new <= loss)
            if not bool(worse.any()):
                break
            step = torch.where(worse[:, None], step / 2, step)
        theta, loss = theta - step, new
        if float(step.abs().max()) < 1e-9:
            break
    return theta


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
