"""Rows of features: standardized block by block, and multiplied with weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv2d
from torch.nn.grad import conv2d_weight

BLOCK = 2**24
"""Numbers in a block that is kept: large enough for all cores, small beside the memory there is."""
CHUNK = 2**20
"""Numbers in a block that is computed in each pass: still in the cache when used."""
CACHED = 2**27
"""Numbers up to which the standardized features of a tensor are kept; of blocks, ``BLOCK``."""

ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
IMAGE = 64
"""Rows that make an image, see ``times``: at this height convolutions were fastest."""


class Rows(Protocol):
    """Features that may not fit in memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of features."""
        ...

    def blocks(self) -> Iterator[Tensor]:
        """Yield ``[n, num_features]`` until all rows are through; each time the same, in order."""
        ...


@dataclass(frozen=True)
class Selected:
    """Some of the rows of ``source``: those where ``mask`` ``[N]`` is true."""

    source: Tensor | Rows
    mask: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Number of selected rows and of features."""
        return int(self.mask.sum()), self.source.shape[1]

    def blocks(self) -> Iterator[Tensor]:
        """Yield the selected rows of each block."""
        start = 0
        source = self.source
        for block in torch.split(source, 1024) if isinstance(source, Tensor) else source.blocks():
            chosen = self.mask[start : start + len(block)].to(block.device)
            start += len(block)
            yield block[chosen]


@dataclass(frozen=True)
class Scale:
    """What standardizes features: ``(x - mean) * inverse``, ``[num_features]`` each."""

    mean: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class Moments:
    """How features vary.

    Attributes:
        mean: ``[num_features]``, float64.
        variance: ``[num_features]``, float64; 0 of a feature that never varies.
        dtype: precision to standardize in.
    """

    mean: Tensor
    variance: Tensor
    dtype: torch.dtype

    def scale(self, var_smoothing: float) -> Scale:
        """Return what standardizes with ``var_smoothing * mean variance`` added to each variance.

        A feature that never varies becomes 0.
        """
        smoothed = self.variance + var_smoothing * self.variance.mean()
        inverse = torch.where(self.variance > 0, smoothed.rsqrt(), 0)
        return Scale(self.mean.to(self.dtype), inverse.to(self.dtype))


class Standardized:
    """Standardized rows, in blocks that are computed once if they are few, else in each pass.

    Args:
        source: features as they are.
        scale: of the training features.
        dtype: of what the blocks yield.
        outputs: columns of the logits that will be computed for a block.
        basis: ``[num_features, rank]``; with it the blocks are the coordinates in this basis.
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
        most = CACHED if isinstance(source, Tensor) else BLOCK
        if keep and self.shape[0] * width <= most:
            self._kept = list(self._blocks(BLOCK))

    def to(self, dtype: torch.dtype) -> Standardized:
        """Return the same rows in another precision, computed again in each pass."""
        if dtype == self.dtype:
            return self
        return Standardized(self.source, self.scale, dtype, self.outputs, self.basis, keep=False)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield which rows, and their features ``[n, num_features]``."""
        start = 0
        for block in self._kept or self._blocks(CHUNK):
            yield slice(start, start + len(block)), block
            start += len(block)

    def whole(self) -> Tensor:
        """Return all rows: ``[N, num_features]``."""
        return torch.cat([block for _, block in self.blocks()])

    def _blocks(self, numbers: int) -> Iterator[Tensor]:
        width = max(1, int(self.source.shape[1]))
        for raw in raw_blocks(self.source, numbers // max(width, self.outputs)):
            block = torch.empty(raw.shape, dtype=self.dtype, device=raw.device)
            chunk = max(1, CHUNK // width)
            for part, out in zip(torch.split(raw, chunk), torch.split(block, chunk), strict=True):
                standardize(part, self.scale, out)
            yield block if self.basis is None else block @ self.basis


def standardize(x: Tensor, scale: Scale, out: Tensor) -> None:
    """Write standardized ``x`` into ``out``.

    The difference is taken first, in the more precise of the two types: where the mean is large
    beside the spread, ``x * inverse - mean * inverse`` would lose what distinguishes the rows.
    """
    precise = torch.promote_types(torch.promote_types(x.dtype, scale.mean.dtype), out.dtype)
    if precise == out.dtype:
        torch.sub(x.to(precise), scale.mean, out=out)
        out.mul_(scale.inverse)
    else:
        out.copy_((x.to(precise) - scale.mean) * scale.inverse)


def raw_blocks(source: Tensor | Rows, rows: int) -> Iterator[Tensor]:
    """Yield ``source`` in blocks of about ``rows`` rows, however it comes.

    Raises:
        ValueError: the source yields something else than its shape says.
    """
    rows = max(IMAGE, rows // IMAGE * IMAGE)
    if isinstance(source, Tensor):
        yield from torch.split(source, rows)
        return
    waiting, held, total = list[Tensor](), 0, 0
    for block in source.blocks():
        if block.ndim != 2 or block.shape[1] != source.shape[1]:
            raise ValueError(
                f"a block has shape {tuple(block.shape)}, expected [n, {source.shape[1]}]"
            )
        for part in torch.split(block, rows):
            if held + len(part) > rows:
                yield torch.cat(waiting)
                waiting, held = [], 0
            waiting.append(part)
            held += len(part)
        total += len(block)
    if held:
        yield torch.cat(waiting)
    if total != source.shape[0]:
        raise ValueError(f"the blocks have {total} rows, the shape says {source.shape[0]}")


def measure(source: Tensor | Rows, sample: int) -> tuple[Moments, Tensor]:
    """Return how the features vary, and ``sample`` of the rows (all if there are fewer).

    One pass: means and variances of chunks are merged in float64 (Chan, Golub and LeVeque, 1979).

    Raises:
        ValueError: a feature is NaN or infinite.
    """
    count, width = int(source.shape[0]), int(source.shape[1])
    picked = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:sample]
    picked = picked.sort().values
    mean = spread = torch.zeros(width, dtype=torch.float64)
    seen, dtype, kept = 0, torch.float32, None
    for block in raw_blocks(source, CHUNK // max(1, width)):
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
        raise ValueError("there are no rows")
    finite = mean.isfinite() & variance.isfinite()
    if not finite.all():
        raise ValueError(
            f"feature {int((~finite).nonzero()[0])} has values that are NaN, infinite or too large"
        )
    # Rounding alone makes a variance of this size: the feature is a constant.
    varies = variance > (4 * torch.finfo(dtype).eps * mean).square()
    return Moments(mean, torch.where(varies, variance, 0), dtype), kept


def times(z: Tensor, weight: Tensor) -> Tensor:
    """Return ``z @ weight.T``, ``[n, num_outputs]``.

    On CPUs, oneDNN's 1 x 1 convolutions over channels-last images, which rows of features are,
    take a quarter of the time of MKL's matrix product with a few columns (measured, AMD EPYC).
    """
    n, (outputs, width) = len(z), weight.shape
    whole = n // IMAGE * IMAGE
    if not whole or not outputs or not _convolves(z):
        return z @ weight.T
    product = conv2d(_images(z[:whole]), weight.reshape(outputs, width, 1, 1))
    product = product.permute(0, 2, 3, 1).reshape(whole, outputs)
    return product if whole == n else torch.cat([product, z[whole:] @ weight.T])


def transposed_times(r: Tensor, z: Tensor) -> Tensor:
    """Return ``r.T @ z``, ``[num_outputs, num_features]``; see ``times``."""
    n, outputs, width = len(z), r.shape[1], z.shape[1]
    whole = n // IMAGE * IMAGE
    if not whole or not outputs or not _convolves(z):
        return r.T @ z
    shape = (outputs, width, 1, 1)
    product = conv2d_weight(_images(z[:whole]), shape, _images(r[:whole].contiguous()))  # type: ignore[no-untyped-call]
    product = product.view(outputs, width)
    return product if whole == n else torch.addmm(product, r[whole:].T, z[whole:])


def _convolves(z: Tensor) -> bool:
    return z.dtype == torch.float32 and z.device.type == "cpu" and ONEDNN


def _images(z: Tensor) -> Tensor:
    """View rows as images of one column, the features as channels: torch asks oneDNN then."""
    n, width = z.shape
    return z.as_strided((n // IMAGE, width, IMAGE, 1), (IMAGE * width, 1, width, width))
