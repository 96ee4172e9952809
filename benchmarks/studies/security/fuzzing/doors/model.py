"""ONNX models: open one with ``Predictor`` and classify one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headkit.export.predict.predictor import Predictor

from ..mutations.onnx_models import edit_model
from ..seeds import SeedFiles
from .door import Door

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
"""The image that models classify."""


def open_door(seeds: SeedFiles, folder: Path) -> Door:
    """See ``doors.open_door``."""
    path = folder / "model.onnx"
    write_neighbours(folder)

    def enter(content: bytes) -> None:
        path.write_bytes(content)
        predictor = Predictor(path, threads=1)
        repr(predictor)
        if predictor.info.form == "backbone":
            predictor.features([IMAGE])
        else:
            predictor.predict([IMAGE], top_k=2)

    return Door(seeds.models("merged", "swappable", "multi", "raw", "backbone"), edit_model, enter)


def write_neighbours(folder: Path) -> None:
    """Write the files that a model may name as its external data."""
    (folder / "weights.data").write_bytes(bytes(4096))
    (folder / "link.data").symlink_to("/etc/hostname")
