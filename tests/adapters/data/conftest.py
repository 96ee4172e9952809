"""A CSV next to its images, for tests of data."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .listings import write_images


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a CSV next to the empty images ``0.jpg`` to ``9.jpg``."""
    write_images(tmp_path, *(f"{number}.jpg" for number in range(10)))

    def write(*lines: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes("\n".join([*lines, ""]).encode(encoding))
        return path

    return write
