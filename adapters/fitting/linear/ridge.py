"""Ridge regression in closed form, for all strengths from one eigendecomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from .standardization import StandardizedRows


class Ridge:
    """Minimize ``mean(||y - prediction||²) / 2 + l2 / 2 * ||W||²``; the bias has no penalty.

    The covariance of the features is decomposed once. Then each strength costs one product with
    the eigenvectors (Hoerl and Kennard, 1970).

    Args:
        rows: Standardized features of N images, float64.
        y: Targets ``[N, num_outputs]``.
    """

    def __init__(self, rows: StandardizedRows, y: Tensor) -> None:
        (count, width), y = rows.shape, y.double()
        self.mean = y.mean(0)
        covariance = torch.zeros(width, width, dtype=torch.float64, device=y.device)
        cross = torch.zeros(y.shape[1], width, dtype=torch.float64, device=y.device)
        z_mean = torch.zeros(width, dtype=torch.float64, device=y.device)
        for where, z in rows.blocks():
            covariance.addmm_(z.T, z)
            cross.addmm_((y[where] - self.mean).T, z)
            z_mean += z.sum(0)
        # The means that standardize features are rounded to the precision of the features.
        self.z_mean = z_mean / count
        covariance.div_(count).sub_(torch.outer(self.z_mean, self.z_mean))
        values, self.vectors = torch.linalg.eigh(covariance)
        self.values = values.clamp(min=0)
        cross /= count
        self.cross = cross @ self.vectors

    def solve(self, l2: float) -> Tensor:
        """Return weights, and biases in the last column: ``[num_outputs, num_features + 1]``."""
        weight = (self.cross / (self.values + l2)) @ self.vectors.T
        return torch.cat([weight, (self.mean - weight @ self.z_mean)[:, None]], 1)
