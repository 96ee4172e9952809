"""Ridge regression in closed form, and what it would predict if some images were left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Range = tuple[int, int]
"""Where some rows start and end."""


class RidgeInverse:
    """The solution of a ridge regression with a free bias, and the inverse of its system.

    It minimizes ``sum(weight * (y - f)²) + ridge * ||w||²``, where ``f`` is linear in the features
    of the kernel. Then ``y - f = ridge / weight * alpha``. If some rows ``B`` are left out, the
    others predict them with the residual ``inverse(P[B, B]) @ alpha[B]``, where ``P`` is the upper
    left part of the inverse of the system with the bias (Cook, 1977; Rifkin and Lippert, 2007). So
    predictions for images that are left out cost no further fit.

    Args:
        kernel: ``[N, N]``, float64.
        y: Targets ``[N, num_outputs]``, float64.
        ridge: Strength of the penalty, above 0.
        weight: Weights of the rows ``[N]``, float64. Default: 1.
    """

    def __init__(
        self, kernel: Tensor, y: Tensor, ridge: float, weight: Tensor | None = None
    ) -> None:
        self.diagonal = torch.full_like(kernel[0], ridge) if weight is None else ridge / weight
        system = kernel + torch.diag(self.diagonal)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
        sums = inverse.sum(1)
        self.inverse = inverse.addr_(sums, sums, alpha=-1 / float(sums.sum()))
        self.alpha = self.inverse @ y
        self.y = y

    def bias(self, kernel: Tensor) -> Tensor:
        """Return the bias ``[num_outputs]`` for centred features."""
        fitted = kernel @ self.alpha
        return (self.y - self.diagonal[:, None] * self.alpha - fitted).mean(0)

    def leave_out(self, groups: Sequence[Range]) -> Tensor:
        """Return for each row of a group what the rows outside of the group predict.

        Args:
            groups: Groups of rows, which do not overlap.

        Returns:
            ``[N, num_outputs]``; 0 for rows that are in no group.
        """
        prediction = torch.zeros_like(self.y)
        for start, end in groups:
            rows = slice(start, end)
            residual = _solve(self.inverse[rows, rows], self.alpha[rows])
            prediction[rows] = self.y[rows] - residual
        return prediction

    def leave_out_twice(self, fold: Range, groups: Sequence[Range]) -> Tensor:
        """Return what ``leave_out`` would return if the rows of a fold did not exist.

        Args:
            fold: The fold.
            groups: Groups of rows outside of the fold.

        Returns:
            ``[N, num_outputs]``. For the rows of the fold, it is what all other rows predict.
        """
        rows = slice(*fold)
        factor = torch.linalg.cholesky(self.inverse[rows, rows])
        across = torch.linalg.solve_triangular(factor, self.inverse[rows], upper=False)
        own = torch.linalg.solve_triangular(factor, self.alpha[rows], upper=False)
        alpha = self.alpha - across.T @ own
        prediction = torch.zeros_like(self.y)
        prediction[rows] = self.y[rows] - torch.linalg.solve_triangular(factor.T, own, upper=True)
        for start, end in groups:
            some = slice(start, end)
            inverse = torch.addmm(
                self.inverse[some, some], across[:, some].T, across[:, some], alpha=-1
            )
            prediction[some] = self.y[some] - _solve(inverse, alpha[some])
        return prediction


def _solve(inverse: Tensor, alpha: Tensor) -> Tensor:
    return torch.cholesky_solve(alpha, torch.linalg.cholesky(inverse))
