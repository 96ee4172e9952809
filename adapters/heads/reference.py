"""Where a head file is: at a path, or where a reference leads that someone can resolve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

RESOLVERS: list[Callable[[str], Path | None]] = []
"""Asked in turn about what is no file; none where they do not know such references."""


def head_path(path: str | Path) -> Path:
    """Return the path of a head file.

    Args:
        path: of a file; or what a resolver makes one of, such as a reference to a store.
    """
    path = Path(path)
    if not path.is_file():
        for resolve in RESOLVERS:
            found = resolve(str(path))
            if found is not None:
                return found
    return path


def head_name(path: str | Path) -> str:
    """Return what a head is called: as its file, or as it was published."""
    path = Path(path)
    if path.suffix in (".safetensors", ".onnx_adapter"):
        return path.stem
    return path.name.removeprefix("sha256:").partition("@")[0]


def is_head(text: str | Path) -> bool:
    """Tell whether a text names a head by its form: a head file, a version, tag or digest."""
    text = str(text)
    return text.endswith(".safetensors") or "@" in text or text.startswith("sha256:")
