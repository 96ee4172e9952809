"""Features and targets of one split, in memory or, where they are too many, on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .cache import CachedRows
from .extract import Extracted

MAX_IN_MEMORY = 512 * 1024**2
"""Bytes of features above which they stay on the disk."""


@dataclass(frozen=True)
class LabeledFeatures:
    """What a head is trained or validated on.

    Attributes:
        x: features of all branches, one after the other, float32 ``[N, num_features]``.
        y: targets in the order of the rows, see ``ImageDataset``.
        shapes: of each branch for one image.
    """

    x: Tensor | CachedRows
    y: Tensor
    shapes: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def from_views(
        cls, views: Sequence[Extracted], chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> LabeledFeatures:
        """Take the images of ``chosen`` ``[N]`` from each view of the same source."""
        parts = [(view.cache, view.found[chosen]) for view in views]
        y = np.concatenate([view.targets[chosen] for view in views])
        rows = CachedRows(parts)
        if 4 * rows.shape[0] * rows.shape[1] > MAX_IN_MEMORY:
            return cls(rows, torch.from_numpy(y[rows.order]), rows.shapes)
        loaded = [
            torch.cat([branch.flatten(1) for branch in cache.load(found)], 1)
            for cache, found in parts
        ]
        return cls(torch.cat(loaded), torch.from_numpy(y), rows.shapes)

    def blocks(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield features ``[n, …]`` of each branch, and targets, in order."""
        start = 0
        for x in (self.x,) if isinstance(self.x, Tensor) else self.x.blocks():
            yield self.branches(x), self.y[start : start + len(x)]
            start += len(x)

    def branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """Take rows apart into branches."""
        widths = [int(np.prod(shape)) for shape in self.shapes]
        return tuple(
            part.reshape(len(x), *shape)
            for part, shape in zip(torch.split(x, widths, 1), self.shapes, strict=True)
        )
