"""Pool a level to a vector.

The vector holds the means of the four quadrants, the maximum and the deviation, all of them over a
grid of 4 x 4 cells, and the first prefix token if there is one. It consists of operators that ONNX
has and that are cheap: everything after the first one works on 16 cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

CELLS = 4
"""Number of rows and of columns of the grid."""
_PARTS = CELLS + 2
"""Numbers that a channel of the map gives: four quadrants, a maximum and a deviation."""


def pooled_width(channels: int, prefix: int) -> int:
    """Return the length of the vector of a level."""
    return channels * (_PARTS + bool(prefix))


def pool(level_map: Tensor, prefix: Tensor | None = None) -> Tensor:
    """Pool a map to a vector.

    Args:
        level_map: ``[batch, channels, height, width]``.
        prefix: The prefix tokens ``[batch, tokens, channels]``, of which the first one is kept.

    Returns:
        ``[batch, 6 * channels]``: the quadrants (channel-major, each channel top left, top right,
        bottom left, bottom right), the maximum over the 16 cells, and the population deviation over
        them. With prefix tokens ``[batch, 7 * channels]``: the first of them follows.
    """
    grid = average_grid(level_map)
    cells = grid.flatten(2)
    deviation = (cells - cells.mean(2, keepdim=True)).square().mean(2).sqrt()
    parts = [avg_pool2d(grid, CELLS // 2).flatten(1), cells.amax(2), deviation]
    if prefix is not None:
        parts.append(prefix[:, 0])
    return torch.cat(parts, 1)


def average_grid(level_map: Tensor) -> Tensor:
    """Return ``adaptive_avg_pool2d(level_map, 4)`` ``[batch, channels, 4, 4]``.

    ONNX has no such operator for a height or width that is not a multiple of 4, so products with
    constant matrices replace it.
    """
    height, width = int(level_map.shape[2]), int(level_map.shape[3])
    if height % CELLS == 0 and width % CELLS == 0:
        return avg_pool2d(level_map, (height // CELLS, width // CELLS))
    rows, columns = (
        torch.from_numpy(cell_weights(length)).to(level_map.device, level_map.dtype)
        for length in (height, width)
    )
    return rows @ level_map @ columns.transpose(0, 1)


def cell_weights(length: int) -> np.ndarray[Any, Any]:
    """Return a matrix ``[4, length]`` that averages the pixels of each cell."""
    weights = np.zeros((CELLS, length))
    for cell in range(CELLS):
        start, end = cell * length // CELLS, -(-(cell + 1) * length // CELLS)
        weights[cell, start:end] = 1 / (end - start)
    return weights
