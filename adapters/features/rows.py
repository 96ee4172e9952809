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
    """

    source: Rows
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of selected columns."""
        return self.source.shape[0], len(self.columns)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the selected columns of each block."""
        for block in self.source.blocks():
            yield block[:, self.columns]


def select_columns(source: Tensor | Rows, ranges: Sequence[tuple[int, int]]) -> Tensor | Rows:
    """Return columns of features side by side.

    Args:
        source: Features ``[N, width]``.
        ranges: Where the columns of each part start and end.
    """
    columns = torch.cat([torch.arange(start, end) for start, end in ranges])
    if not isinstance(source, Tensor):
        return SelectedColumns(source, columns)
    return source[:, columns]
