"""The mean loss of a linear model, with its gradient and curvature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headkit.adapters.heads.tasks import Task

from .products import multiply
from .standardization import StandardizedRows


@dataclass(frozen=True)
class Point:
    """Parameters, and the loss at these parameters.

    Attributes:
        theta: ``[num_outputs, num_features + 1]``: weights, and biases in the last column.
        loss: Mean loss without the penalty.
        gradient: Gradient of ``loss``, shaped like ``theta``.
        curvature: Mean second derivative by each logit, ``[num_outputs]``.
    """

    theta: Tensor
    loss: float
    gradient: Tensor
    curvature: Tensor


class MeanLoss:
    """The mean loss of a linear model as a function of its parameters.

    Args:
        rows: Standardized features of N images.
        y: Targets, see ``Task.restrict``.
        task: The task, which determines the loss, see ``Task.losses``.
        weight: Weights, see ``Task.restrict``.
    """

    def __init__(
        self, rows: StandardizedRows, y: Tensor, task: Task, weight: Tensor | None
    ) -> None:
        self.rows, self.y, self.task, self.weight = rows, y, task, weight
        self.dtype = rows.dtype
        self.total = task.total_weight(y, weight)

    def to(self, dtype: torch.dtype) -> MeanLoss:
        """Return the same function in another precision."""
        return MeanLoss(self.rows.to(dtype), self.y, self.task, self.weight)

    def value(self, theta: Tensor) -> float:
        """Return the loss at these parameters, without derivatives."""
        theta = theta.to(self.dtype)
        weight, bias = theta[:, :-1].contiguous(), theta[:, -1]
        losses = torch.zeros((), dtype=torch.float64, device=theta.device)
        for where, z in self.rows.blocks():
            loss, _, _ = self._losses(multiply(z, weight) + bias, where)
            losses = losses + (loss / self.total).sum()
        return float(losses)

    def evaluate(self, theta: Tensor) -> Point:
        """Return the loss and its derivatives at these parameters, in one pass over the rows."""
        theta = theta.to(self.dtype)
        weight, bias = theta[:, :-1].contiguous(), theta[:, -1]
        losses = torch.zeros((), dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(theta, dtype=torch.float64)
        curvature = torch.zeros(len(theta), dtype=torch.float64, device=theta.device)
        for where, z in self.rows.blocks():
            loss, residual, second = self._losses(multiply(z, weight) + bias, where)
            losses = losses + (loss / self.total).sum()
            gradient[:, :-1] += residual.T @ z
            gradient[:, -1] += residual.sum(0)
            curvature += second.sum(0)
        gradient /= self.total.reshape(-1, 1)
        curvature /= self.total
        return Point(theta, float(losses), gradient.to(self.dtype), curvature.to(self.dtype))

    def _losses(self, logits: Tensor, where: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of some rows and its derivatives, see ``Task.losses``."""
        weight = self.weight
        if weight is not None and weight.dim() == 2:  # weights of images
            weight = weight[where]
        return self.task.losses(logits, self.y[where], weight)
