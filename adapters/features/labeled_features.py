"""Features and targets of one split, in memory or, if they are too large, on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from headkit.adapters.backbone.level import LAST, Level

from .cache import CachedRows
from .extract import ExtractedFeatures
from .rows import Rows, SelectedRows, select_columns

MAX_IN_MEMORY = 512 * 1024**2
"""Largest number of bytes of features that are kept in memory; larger ones stay on the disk."""


@dataclass(frozen=True)
class LabeledFeatures:
    """The features and targets that a head is trained or validated on.

    Attributes:
        x: Features of all branches side by side, then the vectors of the levels, float32
            ``[N, width]``.
        y: Targets in the order of the rows, see ``ImageDataset``.
        shapes: Shape of one image's features in each branch, and of each level's vector.
        images: Number of each row's image, int64 ``[N]``. The views of an image have one number.
        first_view: ``[N]``, True for the rows of the first view.
        levels: The levels whose vectors follow the branches.
    """

    x: Tensor | Rows
    y: Tensor
    shapes: Sequence[tuple[int, ...]]
    images: Tensor
    first_view: Tensor
    levels: tuple[Level, ...] = ()

    def __len__(self) -> int:
        return len(self.y)

    @classmethod
    def from_views(
        cls,
        views: Sequence[ExtractedFeatures],
        chosen: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None,
    ) -> LabeledFeatures:
        """Join several views of one data set.

        Args:
            views: Features of the same ``N`` images, each with another crop.
            chosen: ``[N]``, True for each image to take from every view. Default: all images.
        """
        if chosen is None:
            chosen = np.ones(len(views[0].targets), np.bool_)
        parts = [(view.cache, view.locations[chosen]) for view in views]
        y = torch.from_numpy(np.concatenate([view.targets[chosen] for view in views]))
        rows = CachedRows(parts)
        count = int(chosen.sum())
        images = torch.arange(count).repeat(len(views))
        first = torch.arange(len(images)) < count
        levels = views[0].levels
        if 4 * rows.shape[0] * rows.shape[1] > MAX_IN_MEMORY:
            order = torch.from_numpy(rows.order)
            return cls(rows, y[order], rows.shapes, images[order], first[order], levels)
        loaded = [
            torch.cat([branch.flatten(1) for branch in cache.load(locations)], 1)
            for cache, locations in parts
        ]
        return cls(torch.cat(loaded), y, rows.shapes, images, first, levels)

    def select(self, rows: Tensor) -> LabeledFeatures:
        """Return only some rows, in their order.

        Args:
            rows: ``[N]``, True for each row to keep.
        """
        x = self.x[rows] if isinstance(self.x, Tensor) else SelectedRows(self.x, rows)
        return replace(
            self,
            x=x,
            y=self.y[rows],
            images=self.images[rows],
            first_view=self.first_view[rows],
        )

    @property
    def branches_only(self) -> LabeledFeatures:
        """The same rows without the vectors of levels."""
        if not self.levels:
            return self
        shapes = self.shapes[: len(self.shapes) - len(self.levels)]
        width = sum(int(np.prod(shape)) for shape in shapes)
        return replace(self, x=select_columns(self.x, [(0, width)]), shapes=shapes, levels=())

    def columns_of(self, name: str) -> list[tuple[int, int]]:
        """Return where the columns of a level start and end.

        Args:
            name: Name of a level, or ``last`` for the branches that are vectors, see
                ``levels.last_row``.
        """
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes]).tolist()
        ranges = list(zip([0, *ends[:-1]], ends, strict=True))
        branches = len(self.shapes) - len(self.levels)
        if name != LAST:
            names = [level.name for level in self.levels]
            return [ranges[branches + names.index(name)]]
        return [
            place
            for place, shape in zip(ranges[:branches], self.shapes[:branches], strict=True)
            if len(shape) == 1 or tuple(shape[1:]) == (1, 1)
        ]

    def row(self, names: Sequence[str]) -> Tensor | Rows:
        """Return the vectors of some levels side by side, ``[N, width]``."""
        return select_columns(self.x, [place for name in names for place in self.columns_of(name)])

    def blocks(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yield the features ``[n, …]`` of each branch with their targets, in order."""
        start = 0
        for x in (self.x,) if isinstance(self.x, Tensor) else self.x.blocks():
            yield self.branches(x), self.y[start : start + len(x)]
            start += len(x)

    def branches(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split rows ``[n, width]`` into branches and levels, ``[n, …]`` each."""
        widths = [int(np.prod(shape)) for shape in self.shapes]
        return tuple(
            part.reshape(len(x), *shape)
            for part, shape in zip(torch.split(x, widths, 1), self.shapes, strict=True)
        )
