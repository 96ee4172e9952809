"""The cells of the study, and the draws of their training images."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from headkit.adapters.data.holdout import Mask

from .sets import Array, load

CLASSES = ("digits", "mnist", "defects", "grades")
"""Sets in which all contenders classify."""
OTHER_TASKS = ("probability", "properties")
"""Sets in which only heads are compared."""
FOREIGN = ("blended",)
"""Sets in which networks are far better than heads, to see what tuning gains."""
BACKBONES = ("tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2")
SIZES = (5, 20, 80, "all")
LARGER_SIZES = (20, 80)
"""Images per class of the cells with the larger backbones, and of the sets of ``FOREIGN``."""
MAX_IMAGES = 2000
"""Largest number of training images of "all", which is also at most two thirds of the set."""

Size = int | str


@dataclass(frozen=True)
class Cell:
    """An image set, a backbone, and the number of training images per class or ``all``."""

    set: str
    backbone: str
    images_per_class: Size


def cells(sets: tuple[str, ...] = CLASSES) -> list[Cell]:
    """Return all cells: those of the first backbone, small ones first, then the others."""
    first, *larger = BACKBONES
    pairs = [(first, size) for size in SIZES]
    pairs += [(backbone, size) for size in LARGER_SIZES for backbone in larger]
    every = [Cell(name, backbone, size) for backbone, size in pairs for name in sets]
    return [
        cell for cell in every if cell.set not in FOREIGN or cell.images_per_class in LARGER_SIZES
    ]


def draw_training(name: str, images_per_class: Size, draw: int) -> Mask:
    """Draw the training images of a set; all others are its test images.

    Args:
        name: Name of the image set.
        images_per_class: Number of training images of each class, or ``all`` for as many as the
            study admits, with the shares of the classes that the set has.
        draw: Number of the draw.

    Returns:
        ``[N]``, True for each training image.
    """
    groups = load(name).groups
    seed = (zlib.crc32(f"{name} {images_per_class}".encode()), draw)
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(groups))
    taken = np.zeros(len(groups), np.bool_)
    for label, count in enumerate(_counts(groups, images_per_class)):
        taken[order[groups[order] == label][:count]] = True
    return taken


def _counts(groups: Array, images_per_class: Size) -> list[int]:
    """Return the number of training images of each class."""
    sizes = np.bincount(groups)
    if isinstance(images_per_class, int):
        return [images_per_class] * len(sizes)
    total = min(MAX_IMAGES, len(groups) * 2 // 3)
    return [int(size * total // len(groups)) for size in sizes]
