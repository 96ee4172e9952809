"""timm's eval transform with Pillow and NumPy alone, for use before an exported model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from headkit.adapters.images.pixels import MODES

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop and normalize one image as ``timm.data.transforms_imagenet_eval`` does.

    Attributes:
        height: Height of the result, in pixels.
        width: Width of the result, in pixels.
        interpolation: Pillow's name of the filter in lower case: ``bicubic``, ``bilinear``, …
        crop_pct: Edge of the result divided by the edge of the resized image.
        crop_mode: ``center`` (keep the aspect, cut), ``squash`` (change the aspect) or ``border``
            (keep the aspect, pad).
        mean: Mean per channel, for values from 0 to 1.
        std: Standard deviation per channel, for values from 0 to 1.
        channels: 3 for RGB images, 1 for grey ones.
    """

    height: int
    width: int
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channels: int = 3

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> Preprocess:
        """Read the values from the ``pretrained_cfg`` of a head file.

        Raises:
            ValueError: The number of input channels is neither 1 nor 3, or the interpolation is
                unknown.
        """
        channels, height, width = cfg["input_size"]
        if channels not in MODES:
            raise ValueError(
                f"the number of the model's input channels is {channels}, expected 1 or 3"
            )
        if cfg["interpolation"] not in _RESAMPLING:
            raise ValueError(
                f"interpolation is {cfg['interpolation']!r}, expected one of {[*_RESAMPLING]}"
            )
        return cls(
            height=int(height),
            width=int(width),
            interpolation=cfg["interpolation"],
            crop_pct=float(cfg["crop_pct"]),
            crop_mode=cfg["crop_mode"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            channels=channels,
        )

    def __call__(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return an image of any size and mode as float32 ``[channels, height, width]``."""
        mode = MODES[self.channels]
        # A conversion to the same mode would be a copy.
        image = image if image.mode == mode else image.convert(mode)
        return self.normalize(self.crop(self.resize(image)))

    def resize(self, image: Image.Image) -> Image.Image:
        """Scale the image so that the crop fits, as ``crop_mode`` says."""
        target_h = math.floor(self.height / self.crop_pct)
        target_w = math.floor(self.width / self.crop_pct)
        w, h = image.size
        if self.crop_mode == "squash":
            size = (target_w, target_h)
        elif self.crop_mode == "border":
            ratio = max(h / target_h, w / target_w)
            size = (max(round(w / ratio), 1), max(round(h / ratio), 1))
        elif target_h == target_w:
            # torchvision sets the shorter edge and truncates the longer one; it does not round.
            short, long = min(w, h), max(w, h)
            other = int(target_h * long / short)
            size = (target_h, other) if w <= h else (other, target_h)
        else:
            ratio = min(h / target_h, w / target_w)
            size = (round(w / ratio), round(h / ratio))
        return image if size == image.size else image.resize(size, _RESAMPLING[self.interpolation])

    def crop(self, image: Image.Image) -> Image.Image:
        """Cut out the center; pad first where the image is smaller than the crop."""
        w, h = image.size
        if w < self.width or h < self.height:
            extra_w, extra_h = max(self.width - w, 0), max(self.height - h, 0)
            means = self.mean if self.crop_mode == "border" else (0,) * self.channels
            fill = tuple(round(255 * value) for value in means)
            border = (extra_w // 2, extra_h // 2, (extra_w + 1) // 2, (extra_h + 1) // 2)
            image = ImageOps.expand(image, border, fill if self.channels > 1 else fill[0])
            w, h = image.size
        top, left = round((h - self.height) / 2), round((w - self.width) / 2)
        return image.crop((left, top, left + self.width, top + self.height))

    def normalize(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return an image as float32 ``[channels, height, width]``, normalized by mean and std."""
        pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, self.channels)
        values = pixels.transpose(2, 0, 1).astype(np.float32)
        values /= np.float32(255)
        values -= np.asarray(self.mean, dtype=np.float32)[:, None, None]
        values /= np.asarray(self.std, dtype=np.float32)[:, None, None]
        return values
