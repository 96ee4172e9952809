"""Turn an image into the uint8 pixels that a backbone sees, with the eval crop or a random one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor

from headkit.adapters.images.open import ImageReader
from headkit.adapters.images.pixel_rule import CURRENT_RULE, PixelRule

SCALE = (0.5, 1.0)
"""Smallest and largest share of the image's area that a random crop keeps."""


@dataclass(frozen=True)
class View:
    """A choice of crop, the same for all images.

    Attributes:
        number: 0 for the eval crop; 1, 2, … for random crops, some of them flipped.
        seed: Seed of the random crops. With the same seed, an image gets the same crop wherever it
            is stored.
    """

    number: int = 0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return everything that determines the crop, as JSON values."""
        return {"number": 0} if not self.number else {**asdict(self), "scale": SCALE}


class Transform:
    """timm's own transform without its normalization, which the runtime does.

    Args:
        cfg: timm's preprocessing, as ``headkit.preprocessing`` returns it.
        view: The crop.
        rule: Rule by which an image file becomes pixels.

    Attributes:
        read: Reader of images.

    Raises:
        DataError: The model's number of input channels is neither 1 nor 3.
    """

    def __init__(self, cfg: Mapping[str, Any], view: View, rule: PixelRule = CURRENT_RULE) -> None:
        self.view = view
        self.read = ImageReader.for_model(cfg, rule)
        if view.number:
            self._transform = timm.data.create_transform(
                input_size=cfg["input_size"],
                interpolation=cfg["interpolation"],
                is_training=True,
                scale=SCALE,
                color_jitter=None,
                auto_augment=None,
                use_prefetcher=True,  # returns uint8, as for timm's GPU prefetcher
            )
        else:
            self._transform = timm.data.create_transform(
                **cfg, is_training=False, use_prefetcher=True
            )

    def __call__(self, image: Image.Image, digest: bytes) -> Tensor:
        """Return the pixels of an RGB or grey image, uint8 ``[channels, height, width]``.

        ``digest`` is the digest of the image's content: it seeds a random crop.
        """
        if not self.view.number:
            return self._transform(image)  # type: ignore[no-any-return]
        with seeded(f"{self.view.seed}/{self.view.number}/{digest.hex()}"):
            return self._transform(image)  # type: ignore[no-any-return]


@contextmanager
def seeded(seed: str) -> Iterator[None]:
    """Seed both generators that timm's transforms use, and restore them afterwards."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            torch.manual_seed(random.getrandbits(63))
            yield
    finally:
        random.setstate(state)
