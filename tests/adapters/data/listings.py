"""Helpers for tests of data: write empty image files, and open data that has one split."""

from pathlib import Path
from typing import Any

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.open import open_data


def write_images(root: Path, *names: str) -> Path:
    """Write empty files with the names of images; return their folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def open_train(data: Path, **options: Any) -> ImageDataset:
    """Open data that has a training split alone."""
    train, val = open_data(data, **options)
    assert val is None
    return train
