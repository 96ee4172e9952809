"""The preconditioner of L-BFGS: an approximate inverse Hessian from the features' covariance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .products import multiply

RANK = 128
"""Number of leading eigenvectors of the covariance that the preconditioner knows."""
MIN_CURVATURE = 1e-7
"""Lower bound of an output's curvature: if every image is certain of it, it can still move."""

Preconditioner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenvectors and eigenvalues of the features' covariance, and the mean of the rest.

    Attributes:
        vectors: Eigenvectors ``[num_features, rank]``.
        values: Eigenvalues ``[rank]``.
        tail: Mean of the other eigenvalues.
    """

    vectors: Tensor
    values: Tensor
    tail: float

    @classmethod
    def from_features(cls, z: Tensor) -> Spectrum:
        """Compute it by subspace iteration from a random start (Halko, Martinsson, Tropp 2011).

        Args:
            z: Standardized features of some images, ``[n, num_features]``.
        """
        n, width = z.shape
        rank = min(RANK, n, width)
        start = torch.randn(n, rank, generator=torch.Generator().manual_seed(0), dtype=z.dtype)
        basis = start.to(z.device).T @ z
        basis = multiply(z, basis).T @ z
        basis = torch.linalg.qr(basis.T).Q
        projected = multiply(z, basis.T.contiguous())
        values, vectors = torch.linalg.eigh(projected.T @ projected / n)
        values = values.clamp(min=0)
        rest = float(z.square().sum(dtype=torch.float64)) / n - float(values.sum())
        return cls(basis @ vectors, values, max(0.0, rest / max(1, width - rank)))

    def to(self, dtype: torch.dtype) -> Spectrum:
        """Return the same spectrum in another precision."""
        return Spectrum(self.vectors.to(dtype), self.values.to(dtype), self.tail)

    def preconditioner(self, curvature: Tensor, l2: float) -> Preconditioner:
        """Return the function that multiplies a gradient by the approximate inverse Hessian.

        The approximate Hessian is each output's mean curvature times the covariance of the
        features, plus the penalty. Böhning's (1992) bound of the multinomial Hessian has this form;
        here, the curvature at the current point replaces his constant. The covariance is exact in
        its leading directions and constant in the others, as in randomized preconditioners
        (Frangella, Tropp and Udell, 2021).

        Args:
            curvature: Mean second derivative by each logit, ``[num_outputs]``.
            l2: Strength of the penalty.
        """
        vectors, values = self.vectors, self.values
        curvature = curvature.clamp(min=MIN_CURVATURE)[:, None]
        flat = 1 / (curvature * self.tail + l2)
        leading = 1 / (curvature * values + l2) - flat

        def precondition(gradient: Tensor) -> Tensor:
            weight = gradient[:, :-1]
            product = torch.empty_like(gradient)
            product[:, :-1] = weight * flat + ((weight @ vectors) * leading) @ vectors.T
            product[:, -1] = gradient[:, -1] / curvature[:, 0]
            return product

        return precondition
