"""Levels: intermediate outputs of the backbone, pooled to vectors, which a head may read."""

from __future__ import annotations

from headkit.adapters.backbone.level import ALL, LAST, Level, LevelNames, level_names

from .find import (
    choose_levels,
    examine_levels,
    find_levels,
    last_level,
    last_row,
    vector_levels,
)
from .layout import level_vector, to_map
from .listing import levels
from .recorder import LevelRecorder

__all__ = [
    "ALL",
    "LAST",
    "Level",
    "LevelNames",
    "LevelRecorder",
    "choose_levels",
    "examine_levels",
    "find_levels",
    "last_level",
    "last_row",
    "level_names",
    "level_vector",
    "levels",
    "to_map",
    "vector_levels",
]
