"""What the tests of data share: empty images, and a source that has one split."""

from pathlib import Path
from typing import Any

from headkit.adapters.data.dataset import ImageDataset
from headkit.adapters.data.open import open_data


def write_images(root: Path, *names: str) -> Path:
    """Files that have the names of images and are empty."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def opened(data: Path, **options: Any) -> ImageDataset:
    """The training split of data that have no other."""
    train, val = open_data(data, **options)
    assert val is None
    return train
