"""Ridge regression in closed form, for all strengths from one eigendecomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from .blocks import Standardized


class Ridge:
    """Minimizers of ``mean(||y - prediction||²) / 2 + l2 / 2 * ||W||²``, the bias free.

    The covariance of the features is decomposed once; then each strength costs one product with
    its eigenvectors (Hoerl and Kennard, 1970).

    Args:
        rows: standardized features of N images, float64.
        y: ``[N, num_outputs]``.
    """

    def __init__(self, rows: Standardized, y: Tensor) -> None:
        (count, width), y = rows.shape, y.double()
        self.mean = y.mean(0)
        covariance = torch.zeros(width, width, dtype=torch.float64, device=y.device)
        cross = torch.zeros(y.shape[1], width, dtype=torch.float64, device=y.device)
        z_mean = torch.zeros(width, dtype=torch.float64, device=y.device)
        for where, z in rows.blocks():
            covariance.addmm_(z.T, z)
            cross.addmm_((y[where] - self.mean).T, z)
            z_mean += z.sum(0)
        # Features are standardized with means that are rounded to their own precision.
        self.z_mean = z_mean / count
        covariance.div_(count).sub_(torch.outer(self.z_mean, self.z_mean))
        values, self.vectors = torch.linalg.eigh(covariance)
        self.values = values.clamp(min=0)
        cross /= count
        self.cross = cross @ self.vectors

    def at(self, l2: float) -> Tensor:
        """Return weights, and in the last column biases: ``[num_outputs, num_features + 1]``."""
        weight = (self.cross / (self.values + l2)) @ self.vectors.T
        return torch.cat([weight, (self.mean - weight @ self.z_mean)[:, None]], 1)
