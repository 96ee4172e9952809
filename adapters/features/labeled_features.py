"""Features and targets of one split, in memory or, if they are too large, on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .cache import CachedRows
from .extract import ExtractedFeatures

MAX_IN_MEMORY = 512 * 1024**2
"""Largest number of bytes of features that are kept in memory; larger ones stay on the disk."""


@dataclass(frozen=True)
class LabeledFeatures:
    """The features and targets that a head is trained or validated on.

    Attributes:
        x: Features of all branches side by side, float32 ``[N, num_features]``.
        y: Targets in the order of the rows, see ``ImageDataset``.
        shapes: Shape of one image's features in each branch.
    """

    x: Tensor | CachedRows
    y: Tensor
    shapes: Sequence[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def from_views(
        cls, views: Sequence[ExtractedFeatures], chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]
    ) -> LabeledFeatures:
        """Join several views of one data set.

        Args:
            views: Features of the same ``N`` images, each with another crop.
            chosen: ``[N]``, True for each image to take from every view.
        """
        parts = [(view.cache, view.locations[chosen]) for view in views]
        y = np.concatenate([view.targets[chosen] for view in views])
        rows = CachedRows(parts)
        if 4 * rows.shape[0] * rows.shape[1] > MAX_IN_MEMORY:
            return cls(rows, torch.from_numpy(y[rows.order]), rows.shapes)
        loaded = [
            torch.cat([branch.flatten(1) for branch in cache.load(locations)], 1)
            for cache, locations in parts
        ]
        return cls(torch.cat(loaded), torch.from_numpy(y), rows.shapes)

    def blocks(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield the features ``[n, …]`` of each branch with their targets, in order."""
        start = 0
        for x in (self.x,) if isinstance(self.x, Tensor) else self.x.blocks():
            yield self.branches(x), self.y[start : start + len(x)]
            start += len(x)

    def branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split rows ``[n, num_features]`` into branches, ``[n, …]`` each."""
        widths = [int(np.prod(shape)) for shape in self.shapes]
        return tuple(
            part.reshape(len(x), *shape)
            for part, shape in zip(torch.split(x, widths, 1), self.shapes, strict=True)
        )
