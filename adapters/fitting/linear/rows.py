"""Rows of features that may not fit in memory: read them in blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .products import IMAGE_ROWS


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


def split_rows(source: Tensor | Rows, rows: int) -> Iterator[Tensor]:
    """Yield ``source`` in blocks of about ``rows`` rows, whatever its own blocks are.

    Raises:
        ValueError: The blocks of the source do not have the shape that it states.
    """
    rows = max(IMAGE_ROWS, rows // IMAGE_ROWS * IMAGE_ROWS)
    if isinstance(source, Tensor):
        yield from torch.split(source, rows)
        return
    waiting, num_waiting, total = list[Tensor](), 0, 0
    for block in source.blocks():
        if block.ndim != 2 or block.shape[1] != source.shape[1]:
            raise ValueError(
                f"a block has shape {tuple(block.shape)}, expected [n, {source.shape[1]}]"
            )
        for part in torch.split(block, rows):
            if num_waiting + len(part) > rows:
                yield torch.cat(waiting)
                waiting, num_waiting = [], 0
            waiting.append(part)
            num_waiting += len(part)
        total += len(block)
    if num_waiting:
        yield torch.cat(waiting)
    if total != source.shape[0]:
        raise ValueError(f"the blocks have {total} rows, expected {source.shape[0]}")
