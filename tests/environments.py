"""Packages in a virtual environment that has no pip: making one with pip takes seconds."""

import subprocess
import sys
from pathlib import Path


def pip_install(python: Path, *arguments: str) -> None:
    """Install packages for ``python`` with the pip of this environment."""
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", *arguments], check=True)
