"""Standardize rows of features block by block, with the moments of the training features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import Rows, split_rows

BLOCK = 2**24
"""Numbers in a block that is kept: large enough for all cores, small compared with the memory."""
CHUNK = 2**20
"""Numbers in a block that each pass computes again: small enough to stay in the cache."""
CACHED = 2**27
"""Maximum numbers of a tensor whose standardized features are kept; for ``Rows``, ``BLOCK``."""


@dataclass(frozen=True)
class Scale:
    """Coefficients that standardize features: ``(x - mean) * inverse``, ``[num_features]`` each."""

    mean: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class Moments:
    """Means and variances of features.

    Attributes:
        mean: Means ``[num_features]``, float64.
        variance: Variances ``[num_features]``, float64; 0 for a feature that never varies.
        dtype: Precision in which features are standardized.
    """

    mean: Tensor
    variance: Tensor
    dtype: torch.dtype

    def scale(self, var_smoothing: float) -> Scale:
        """Return the scale if ``var_smoothing * mean variance`` is added to each variance.

        It makes a feature that never varies 0.
        """
        smoothed = self.variance + var_smoothing * self.variance.mean()
        inverse = torch.where(self.variance > 0, smoothed.rsqrt(), 0)
        return Scale(self.mean.to(self.dtype), inverse.to(self.dtype))


class StandardizedRows:
    """Standardized rows in blocks. A few blocks are computed once, many are computed in each pass.

    Args:
        source: Features that are not standardized.
        scale: Scale of the training features.
        dtype: Precision of the blocks.
        outputs: Number of logits that will be computed for each row of a block.
        basis: ``[num_features, rank]``; if given, blocks hold the coordinates in this basis.
        keep: Allow keeping the blocks in memory.
    """

    def __init__(
        self,
        source: Tensor | Rows,
        scale: Scale,
        dtype: torch.dtype,
        outputs: int,
        basis: Tensor | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.source, self.scale, self.dtype, self.outputs = source, scale, dtype, outputs
        self.basis = basis
        width = int(source.shape[1] if basis is None else basis.shape[1])
        self.shape = (int(source.shape[0]), width)
        self._kept: list[Tensor] | None = None
        largest = CACHED if isinstance(source, Tensor) else BLOCK
        if keep and self.shape[0] * width <= largest:
            self._kept = list(self._compute_blocks(BLOCK))

    def to(self, dtype: torch.dtype) -> StandardizedRows:
        """Return the same rows in another precision, which each pass computes again."""
        if dtype == self.dtype:
            return self
        return StandardizedRows(
            self.source, self.scale, dtype, self.outputs, self.basis, keep=False
        )

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the row numbers of each block and its features ``[n, num_features]``."""
        start = 0
        for block in self._kept or self._compute_blocks(CHUNK):
            yield slice(start, start + len(block)), block
            start += len(block)

    def to_tensor(self) -> Tensor:
        """Return all rows ``[N, num_features]``."""
        return torch.cat([block for _, block in self.blocks()])

    def _compute_blocks(self, numbers: int) -> Iterator[Tensor]:
        width = max(1, int(self.source.shape[1]))
        for raw in split_rows(self.source, numbers // max(width, self.outputs)):
            block = torch.empty(raw.shape, dtype=self.dtype, device=raw.device)
            chunk = max(1, CHUNK // width)
            for part, out in zip(torch.split(raw, chunk), torch.split(block, chunk), strict=True):
                standardize(part, self.scale, out)
            yield block if self.basis is None else block @ self.basis


def standardize(x: Tensor, scale: Scale, out: Tensor) -> None:
    """Write standardized ``x`` into ``out``.

    The mean is subtracted first, in the more precise of the two types. If the mean is large
    compared with the spread, ``x * inverse - mean * inverse`` would lose the differences between
    rows.
    """
    precise = torch.promote_types(torch.promote_types(x.dtype, scale.mean.dtype), out.dtype)
    if precise == out.dtype:
        torch.sub(x.to(precise), scale.mean, out=out)
        out.mul_(scale.inverse)
    else:
        out.copy_((x.to(precise) - scale.mean) * scale.inverse)


def measure_moments(source: Tensor | Rows, sample: int) -> tuple[Moments, Tensor]:
    """Return the moments of features, and ``sample`` of the rows (all rows if there are fewer).

    One pass merges means and variances of chunks in float64 (Chan, Golub and LeVeque, 1979).

    Raises:
        ValueError: A feature is NaN or infinite.
    """
    count, width = int(source.shape[0]), int(source.shape[1])
    picked = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:sample]
    picked = picked.sort().values
    mean = spread = torch.zeros(width, dtype=torch.float64)
    seen, dtype, kept = 0, torch.float32, None
    for block in split_rows(source, CHUNK // max(1, width)):
        dtype = torch.float64 if block.dtype == torch.float64 else torch.float32
        mean, spread = mean.to(block.device), spread.to(block.device)
        if kept is None:
            kept = block.new_empty(len(picked), width)
        first, last = torch.searchsorted(picked, torch.tensor([seen, seen + len(block)])).tolist()
        kept[first:last] = block[(picked[first:last] - seen).to(block.device)]
        centre = block.to(dtype).mean(0)
        squares = (block - centre).square_().sum(0, dtype=torch.float64)
        step = centre.double() - mean
        share = len(block) / (seen + len(block))
        mean = mean + share * step
        spread = spread + squares + seen * share * step.square()
        seen += len(block)
    variance = spread / max(1, count)
    if kept is None:
        raise ValueError("the features have no rows, expected at least one")
    finite = mean.isfinite() & variance.isfinite()
    if not finite.all():
        raise ValueError(
            f"feature {int((~finite).nonzero()[0])} has values that are NaN, infinite or too large"
        )
    # Rounding alone gives a constant feature a variance of this size.
    varies = variance > (4 * torch.finfo(dtype).eps * mean).square()
    return Moments(mean, torch.where(varies, variance, 0), dtype), kept
