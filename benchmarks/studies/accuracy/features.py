"""Extract the features of all images of a set once for all heads, and keep them in ``build``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from headkit.adapters.backbone.forward import features
from headkit.adapters.files import make_parent_folder, write_atomically

from . import backbones
from .clock import Clock
from .network import EVAL_BATCH, Normalize, as_float
from .sets import Array, ImageSet

FOLDER = Path("build") / "accuracy" / "features"
_SECONDS = "cpu_seconds"


@dataclass(frozen=True)
class SetFeatures:
    """Features of all images of a set.

    Attributes:
        levels: float32 ``[N, width]`` by name of the level.
        cpu_seconds: Seconds that extraction took per image, of one thread.
    """

    levels: dict[str, Array]
    cpu_seconds: float


def extract(images: ImageSet, backbone: str) -> SetFeatures:
    """Return the features of a set; they are computed only the first time."""
    path = FOLDER / f"{backbone}-{images.source}.safetensors"
    if not path.exists():
        found = _compute(images, backbone)
        seconds = {_SECONDS: np.array([found.cpu_seconds])}
        make_parent_folder(path)
        write_atomically(path, safetensors.numpy.save({**found.levels, **seconds}))
    return _read(path)


@lru_cache(maxsize=1)
def _read(path: Path) -> SetFeatures:
    levels = safetensors.numpy.load_file(path)
    return SetFeatures(levels, float(levels.pop(_SECONDS)[0]))


@torch.inference_mode()
def _compute(images: ImageSet, backbone: str) -> SetFeatures:
    model = backbones.load(backbone).to(memory_format=torch.channels_last)
    normalize, clock = Normalize(model), Clock()
    parts = [
        features(model, normalize(as_float(images.pixels[start : start + EVAL_BATCH])), "all")
        for start in range(0, len(images.pixels), EVAL_BATCH)
    ]
    seconds = clock.read()["cpu_seconds"] / len(images.pixels)
    return SetFeatures(
        {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}, seconds
    )
