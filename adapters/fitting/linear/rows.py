"""Read rows of features in blocks whose size suits the solver."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headkit.adapters.features.rows import Rows, SelectedRows

__all__ = ["Rows", "SelectedRows", "split_rows"]

MIN_ROWS = 64
"""Minimum number of rows in a block."""


def split_rows(source: Tensor | Rows, rows: int) -> Iterator[Tensor]:
    """Yield ``source`` in blocks of about ``rows`` rows, whatever its own blocks are.

    Raises:
        ValueError: The blocks of the source do not have the shape that it states.
    """
    rows = max(MIN_ROWS, rows)
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
