"""The kernel of each level: inner products of the images' features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 4096
"""Maximum number of features that are centred in double precision at once."""


@dataclass(frozen=True)
class LevelKernel:
    """The kernel of one level.

    Features are centred and divided by the square root of their summed variance, so that every
    level has the same say, however many features it has.

    Attributes:
        kernel: Inner products ``[N, N]``, float64; its trace is ``N``, or 0 if no feature varies.
        mean: Means of the features ``[width]``, float64.
        scale: Factor of the centred features.
    """

    kernel: Tensor
    mean: Tensor
    scale: float

    @classmethod
    def from_features(cls, x: Tensor) -> LevelKernel:
        """Compute the kernel of features ``[N, width]``.

        Raises:
            ValueError: A feature is NaN or infinite.
        """
        count = len(x)
        kernel = torch.zeros(count, count, dtype=torch.float64, device=x.device)
        means = []
        for part in torch.split(x, CHUNK, 1):
            part = part.double()
            mean = part.mean(0)
            part = part - mean
            kernel.addmm_(part, part.T)
            means.append(mean)
        total = float(kernel.trace())
        if not torch.isfinite(kernel).all():
            raise ValueError("the features have values that are NaN, infinite or too large")
        largest = float(x.abs().max()) if x.numel() else 0.0
        # Rounding alone gives constant features a variance of this size.
        varies = total > count * x.shape[1] * (4 * torch.finfo(torch.float32).eps * largest) ** 2
        scale = (count / total) ** 0.5 if varies else 0.0
        return cls(kernel * scale**2, torch.cat(means), scale)

    def weight(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Return the linear map of the features ``[num_outputs, width]`` that ``alpha`` stands for.

        Args:
            x: The features ``[N, width]`` that the kernel was computed from.
            alpha: Coefficients of the images ``[N, num_outputs]``.
        """
        parts = [
            alpha.T @ (part.double() - mean)
            for part, mean in zip(
                torch.split(x, CHUNK, 1), torch.split(self.mean, CHUNK), strict=True
            )
        ]
        return torch.cat(parts, 1) * self.scale**2


def average(kernels: Sequence[LevelKernel]) -> Tensor:
    """Return the mean kernel ``[N, N]`` of some levels."""
    return torch.stack([one.kernel for one in kernels]).mean(0)
