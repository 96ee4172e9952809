"""Rows of features that may not fit in memory: read them in blocks, or only a part of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Features that may not fit in memory."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of features."""
        ...

    def blocks(self) -> Iterator[Tensor]:
        """Yield all rows in blocks ``[n, num_features]``: each time the same ones, in order."""
        ...


@dataclass(frozen=True)
class SelectedRows:
    """The rows of ``source`` for which ``mask`` ``[N]`` is True."""

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
            selected = self.mask[start : start + len(block)].to(block.device)
            start += len(block)
            yield block[selected]


@dataclass(frozen=True)
class SelectedColumns:
    """Some columns of ``source``.

    Attributes:
        source: The features.
        columns: Numbers of the columns, int64.
        scale: Factor of each column.
    """

    source: Rows
    columns: Tensor
    scale: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of selected columns."""
        return self.source.shape[0], len(self.columns)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the selected columns of each block."""
        for block in self.source.blocks():
            part = block[:, self.columns]
            yield part if self.scale is None else part * self.scale


def select_columns(
    source: Tensor | Rows, ranges: Sequence[tuple[int, int]], scales: Sequence[float] | None = None
) -> Tensor | Rows:
    """Return columns of features side by side, each range multiplied by its scale.

    Args:
        source: Features ``[N, width]``.
        ranges: Where the columns of each part start and end.
        scales: Factor of each range. Default: 1.
    """
    columns = torch.cat([torch.arange(start, end) for start, end in ranges])
    scale = None
    if scales is not None:
        widths = torch.tensor([end - start for start, end in ranges])
        scale = torch.tensor(scales, dtype=torch.float32).repeat_interleave(widths)
    if not isinstance(source, Tensor):
        return SelectedColumns(source, columns, scale)
    part = source[:, columns]
    return part if scale is None else part * scale
