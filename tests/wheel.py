"""Build the distributions. ``python -m tests.wheel`` writes the list of files in the wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = Path(__file__).with_name("wheel_files.txt")
TREE = ("adapters", "benchmarks", "export", "headkit", "registry")
"""Folders that the source tree has at the top, besides tests and documents."""


def copy_tree(folder: Path) -> Path:
    """Copy what a build reads, links as links, so that a build leaves nothing in the checkout."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in TREE:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for file in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / file, folder)
    return folder


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build an ``sdist`` or a ``wheel`` of the files in ``tree``.

    Raises:
        RuntimeError: the build fails; its message is what the build wrote on stderr.
    """
    out.mkdir(parents=True, exist_ok=True)
    code = f"import sys; from setuptools import build_meta as b; b.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    [made] = out.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution and return the folder that it holds."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [tree] = folder.iterdir()
    return tree


def files(wheel: Path) -> list[str]:
    """List the files of a wheel, without its own description of itself."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    return sorted(name for name in names if ".dist-info/" not in name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tree").mkdir()
        made = build("wheel", copy_tree(Path(folder) / "tree"), Path(folder) / "out")
        LIST.write_text("\n".join(files(made)) + "\n", encoding="utf-8")
