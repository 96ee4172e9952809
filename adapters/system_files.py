"""Know the names of hidden and system files, which hold nothing that a user labeled."""

from __future__ import annotations

import os

SYSTEM_NAMES = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@tmp",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "icon\r",
        "lost+found",
        "lost.dir",
        "node_modules",
        "recycler",
        "system volume information",
        "thumbs.db",
    }
)
"""Lowercase names of files and folders that systems and tools create beside a user's own."""


def is_system_name(name: str) -> bool:
    """Return True if a file or folder called ``name`` is hidden or belongs to a system or tool."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def count_files(folder: str, limit: int = 3) -> tuple[int, list[str]]:
    """Return the number of files below a folder, without following links, and ``limit`` of them."""
    found = 0
    examples: list[str] = []
    for parent, folders, files in os.walk(folder):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        for name in [*sorted(files), *links]:
            found += 1
            if len(examples) < limit:
                examples.append(os.path.join(parent, name))  # noqa: PTH118
    return found, examples
