"""Random changes of training images that keep their targets."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

ROTATION = math.radians(10)
"""Largest rotation, in either direction."""
SCALE, SHIFT = 0.1, 0.1
"""Largest change of the size, and largest shift, as shares of the edge."""
CONTRAST = 0.2
"""Largest change of contrast and brightness."""


def augment(images: Tensor, flips: bool, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift each image a little, and change its contrast and brightness.

    Args:
        images: float ``[B, 1, height, width]`` from 0 to 1.
        flips: True to mirror half of the images in each direction, too.
        generator: Source of the random numbers.
    """

    def uniform(largest: float) -> Tensor:
        return (2 * torch.rand(len(images), generator=generator) - 1) * largest

    angle, scale = uniform(ROTATION), 1 + uniform(SCALE)
    matrix = torch.empty(len(images), 2, 3)
    matrix[:, 0] = torch.stack([angle.cos() * scale, -angle.sin() * scale, uniform(2 * SHIFT)], 1)
    matrix[:, 1] = torch.stack([angle.sin() * scale, angle.cos() * scale, uniform(2 * SHIFT)], 1)
    if flips:
        signs = torch.randint(0, 2, (len(images), 2, 1), generator=generator) * 2 - 1
        matrix[:, :, :2] *= signs
    grid = affine_grid(matrix, list(images.shape), align_corners=False)
    moved = grid_sample(images, grid, padding_mode="border", align_corners=False)
    shape = (-1, 1, 1, 1)
    moved = moved * (1 + uniform(CONTRAST)).view(shape) + uniform(CONTRAST / 2).view(shape)
    return moved.clamp(0, 1)
