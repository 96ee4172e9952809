"""From an image file to the pixels that a backbone sees: uint8, the eval crop or a random one."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import timm.data
import torch
from PIL import Image
from torch import Tensor

SCALE = (0.5, 1.0)
"""Share of the image's area that a random crop keeps, from and to."""


@dataclass(frozen=True)
class View:
    """Which crop of an image.

    Attributes:
        number: 0 for the eval crop; others for random crops, flipped or not.
        seed: of the random crops. The same seed gives an image the same crop wherever it lies.
    """

    number: int = 0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return all that decides on the crop, as JSON values."""
        return {"number": 0} if not self.number else {**asdict(self), "scale": SCALE}


class Transform:
    """timm's own transform up to the pixels; normalization is left to the runtime.

    Args:
        cfg: preprocessing in timm's words, as ``adapt.preprocessing`` gives it.
        view: which crop.
    """

    def __init__(self, cfg: Mapping[str, Any], view: View) -> None:
        self.view = view
        if view.number:
            self._transform = timm.data.create_transform(
                input_size=cfg["input_size"],
                interpolation=cfg["interpolation"],
                is_training=True,
                scale=SCALE,
                color_jitter=None,
                auto_augment=None,
                use_prefetcher=True,  # uint8, as for timm's GPU prefetcher
            )
        else:
            self._transform = timm.data.create_transform(
                **cfg, is_training=False, use_prefetcher=True
            )

    def __call__(self, image: Image.Image, digest: bytes) -> Tensor:
        """Return uint8 ``[3, height, width]`` of an RGB image whose identity is ``digest``."""
        if not self.view.number:
            return self._transform(image)  # type: ignore[no-any-return]
        seed = f"{self.view.seed}/{self.view.number}/{digest.hex()}"
        state = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):  # timm draws from both generators
                random.seed(seed)
                torch.manual_seed(random.getrandbits(63))
                return self._transform(image)  # type: ignore[no-any-return]
        finally:
            random.setstate(state)
