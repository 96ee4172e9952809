"""Fixtures of the tests of commands and functions."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(shapes: Path, tmp_path: Path) -> Path:
    """Return a copy of the images, which a test may change."""
    return Path(shutil.copytree(shapes, tmp_path / "shapes"))
