"""Images: decode one as ``predict`` and ``fit`` do, and prepare it for a model.

The length of the image decides which rule for pixels it is read by, and whether from a file.
"""

from __future__ import annotations

from pathlib import Path

from headkit.adapters.heads.head import Head
from headkit.adapters.images.open import ImageReader
from headkit.adapters.images.pixel_rule import CURRENT_RULE, VERSION_1_RULE
from headkit.export.preprocess.pillow import Preprocess

from ..mutations.images import draw_images, edit_image
from ..seeds import SeedFiles
from .door import Door


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    cfg = Head.load(seeds.folder / "resnet-own.safetensors").pretrained_cfg
    grey = {**cfg, "input_size": [1, 32, 32], "mean": cfg["mean"][:1], "std": cfg["std"][:1]}
    readers = [ImageReader.for_model(cfg, rule) for rule in (CURRENT_RULE, VERSION_1_RULE)]
    readers.append(ImageReader.for_model(grey))
    prepares = [Preprocess.from_cfg(one) for one in (cfg, cfg, grey)]
    path = folder / "image"

    def enter(content: bytes) -> None:
        number = len(content) % len(readers)
        path.write_bytes(content)
        prepares[number](readers[number](path if number else content))

    return Door(draw_images(), edit_image, enter)
