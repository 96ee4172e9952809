"""Ridge regression in closed form, for all strengths from one eigendecomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from .standardization import StandardizedRows


class Ridge:
    """Minimize ``mean(||y - prediction||²) / 2 + l2 / 2 * ||W||²``; the bias has no penalty.

    The covariance of the features is decomposed once, or the inner products of the images if there
    are fewer images than features (the dual form; Saunders, Gammerman and Vovk, 1998). Then each
    strength costs one product with the eigenvectors (Hoerl and Kennard, 1970).

    Args:
        rows: Standardized features of N images, float64.
        y: Targets ``[N, num_outputs]``.
    """

    def __init__(self, rows: StandardizedRows, y: Tensor) -> None:
        (count, width), self.rows = rows.shape, rows
        self.mean = y.double().mean(0)
        self.y = y.double() - self.mean
        z_mean = torch.zeros(width, dtype=torch.float64, device=y.device)
        for _, z in rows.blocks():
            z_mean += z.sum(0)
        # The means that standardize features are rounded to the precision of the features.
        self.z_mean = z_mean / count
        self.dual = count < width
        matrix = self._inner_products() if self.dual else self._covariance()
        values, self.vectors = torch.linalg.eigh(matrix / count)
        self.values = values.clamp(min=0)
        self.cross = (self.y.T if self.dual else self._times_rows(self.y)) @ self.vectors / count

    def solve(self, l2: float) -> Tensor:
        """Return weights, and biases in the last column: ``[num_outputs, num_features + 1]``."""
        weight = (self.cross / (self.values + l2)) @ self.vectors.T
        if self.dual:
            weight = self._times_rows(weight.T)
        return torch.cat([weight, (self.mean - weight @ self.z_mean)[:, None]], 1)

    def _covariance(self) -> Tensor:
        """Return the covariance times N, ``[num_features, num_features]``."""
        width = len(self.z_mean)
        covariance = torch.zeros(width, width, dtype=torch.float64, device=self.y.device)
        for _, z in self.rows.blocks():
            covariance.addmm_(z.T, z)
        return covariance.sub_(torch.outer(self.z_mean, self.z_mean), alpha=len(self.y))

    def _inner_products(self) -> Tensor:
        """Return the inner products of the centred rows, ``[N, N]``."""
        z = self.rows.to_tensor() - self.z_mean
        return z @ z.T

    def _times_rows(self, factors: Tensor) -> Tensor:
        """Return ``factors.T @ centred rows``, ``[num_outputs, num_features]``."""
        product = torch.zeros(
            factors.shape[1], len(self.z_mean), dtype=torch.float64, device=self.y.device
        )
        for where, z in self.rows.blocks():
            product.addmm_(factors[where].T, z)
        return product.sub_(torch.outer(factors.sum(0), self.z_mean))
