"""Images: a batch of random pixels, and a folder of three classes that are easy to separate."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

X = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(5))
"""Three images for the small backbone, float32 [3, 3, 160, 160]."""


def write_shapes(root: Path, images: int = 8) -> Path:
    """Write three classes of ``images`` images each: bright, dark and striped."""
    generator = np.random.default_rng(0)
    for label in ("bright", "dark", "striped"):
        (root / label).mkdir(parents=True)
        for index in range(images):
            pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
            if label == "bright":
                pixels += 190
            elif label == "striped":
                pixels[::4] += 190
            Image.fromarray(pixels).save(root / label / f"{index}.png")
    return root


def read_images(root: Path) -> tuple[list[Path], list[str], np.ndarray[Any, Any]]:
    """The paths, labels and pixels, uint8 [N, height, width, 3], of a folder of class folders."""
    paths = sorted(root.glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    return paths, [path.parent.name for path in paths], pixels
