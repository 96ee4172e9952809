"""Know which names of data are those of timm's readers, without importing timm."""

from __future__ import annotations

from pathlib import Path

from headkit.adapters.files import exists

READERS = {
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow_datasets",
    "wds": "webdataset",
}
"""Prefixes of timm's readers, and the module that each of them imports."""


def reader_prefix(data: str | Path) -> str:
    """Return the prefix of ``data`` that names a reader, or an empty string for a path."""
    prefix, slash, _ = str(data).partition("/")
    return prefix if slash and prefix in READERS and not exists(data) else ""
