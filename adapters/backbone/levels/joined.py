"""Pool several levels at once: the same numbers as ``pooling``, for graphs that are exported.

A runtime spends microseconds on each node, however small its tensors are, and some operators have
kernels for few shapes. So each level gets one product, pooling or convolution that reads the map in
the layout in which the model computes it, and all that follows is done for all levels together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from headkit.adapters.backbone.level import Level
from headkit.adapters.errors import ContractError

from .layout import to_map
from .pooling import CELLS, cell_weights

_NUM_CELLS = CELLS * CELLS
_BLOCK = 16
"""Number of channels in the largest block of ONNX Runtime's blocked layout. Its kernels for pooling
need whole blocks, those for a convolution of each channel do not."""


@dataclass(frozen=True)
class Cells:
    """The cells of a level's map.

    Attributes:
        level: The level.
        means: ``[batch, channels, 16]``.
        prefix: The prefix tokens ``[batch, tokens, channels]``, or None.
    """

    level: Level
    means: Tensor
    prefix: Tensor | None


def find_cells(
    model: nn.Module, level: Level, output: Any, image_size: tuple[int, int] | None
) -> Cells:
    """Return the cells of a level; the arguments are those of ``level_vector``.

    Raises:
        ContractError: The output is not what the level describes.
    """
    level_map, prefix = to_map(model, level, output, image_size)
    height, width = int(level_map.shape[2]), int(level_map.shape[3])
    tensor: Tensor = output if level.item is None else output[level.item]
    if level.layout in ("NHWC", "NLC"):
        weights = np.pad(_map_weights(height, width), ((level.prefix, 0), (0, 0)))
        tokens = tensor if level.layout == "NLC" else tensor.flatten(1, 2)
        means = (_constant(weights.T, tensor) @ tokens).transpose(1, 2)
    elif height % CELLS or width % CELLS:
        means = level_map.flatten(2) @ _constant(_map_weights(height, width), tensor)
    else:
        means = _equal_cells(level_map, (height // CELLS, width // CELLS)).flatten(2)
    return Cells(level, means, prefix)


def _equal_cells(level_map: Tensor, size: tuple[int, int]) -> Tensor:
    channels = int(level_map.shape[1])
    if channels % _BLOCK == 0:
        return avg_pool2d(level_map, size)
    weights = np.full((channels, 1, *size), 1 / (size[0] * size[1]))
    return conv2d(level_map, _constant(weights, level_map), stride=size, groups=channels)


def join_vectors(levels: Sequence[Cells]) -> list[Tensor]:
    """Return the vector ``[batch, width]`` of each level, see ``pooling.pool``.

    Raises:
        ContractError: A vector has another width than its level.
    """
    if not levels:
        return []
    means = torch.cat([one.means for one in levels], 1)
    quadrants = means @ _constant(_quadrant_weights(), means)
    spread = means @ _constant(_spread_weights(), means)
    deviation = (spread * spread).sum(2).sqrt()
    channels = [int(one.means.shape[1]) for one in levels]
    splits = (torch.split(part, channels, 1) for part in (quadrants, means.amax(2), deviation))
    parts = zip(*splits, strict=True)
    vectors = []
    for one, (quarter, largest, deviating) in zip(levels, parts, strict=True):
        first = [] if one.prefix is None else [one.prefix[:, 0]]
        vector = torch.cat([quarter.flatten(1), largest, deviating, *first], 1)
        if vector.shape[1] != one.level.width:
            raise ContractError(
                f"the level {one.level.name} has {vector.shape[1]} values, expected "
                f"{one.level.width}: pass a level that find_levels returned for this architecture"
            )
        vectors.append(vector)
    return vectors


def _map_weights(height: int, width: int) -> np.ndarray[Any, Any]:
    """Return a matrix ``[height * width, 16]`` that averages the pixels of each cell."""
    return np.kron(cell_weights(height), cell_weights(width)).T


def _quadrant_weights() -> np.ndarray[Any, Any]:
    """Return a matrix ``[16, 4]`` that averages the cells of each quadrant."""
    half = np.kron(np.eye(2), np.full((CELLS // 2, 1), 2 / CELLS))
    return np.kron(half, half)


def _spread_weights() -> np.ndarray[Any, Any]:
    """Return a matrix ``[16, 16]``: the squares of the product sum up to the variance of cells."""
    centered = np.eye(_NUM_CELLS) - 1 / _NUM_CELLS
    return np.asarray(centered / np.sqrt(_NUM_CELLS))


def _constant(weights: np.ndarray[Any, Any], like: Tensor) -> Tensor:
    return torch.tensor(weights.tolist(), dtype=like.dtype, device=like.device)
