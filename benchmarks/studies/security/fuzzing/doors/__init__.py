"""The doors of headkit: each module makes one ``Door`` out of valid files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from ..seeds import SeedFiles
from .door import Door

DOORS = (
    *("head_file", "model", "graft", "serving", "adapter_file"),
    *("cache_shard", "store_record", "csv", "image", "http_body"),
)
"""Names of the doors, in the order of the results."""


def open_door(name: str, seeds: SeedFiles, folder: Path) -> Door:
    """Return a door.

    Args:
        name: One of ``DOORS``.
        seeds: The valid files.
        folder: Folder for the files of its inputs.
    """
    module = import_module(f"{__name__}.{'csv_file' if name == 'csv' else name}")
    door: Door = module.open_door(seeds, folder)
    return door
