"""Reword texts of the committed results for the documents."""

from __future__ import annotations

import re
from collections.abc import Sequence

MISSING = "not measured yet"
_REWORDED = (
    (r"^no image$", "not an image"),
    (r"^cut connection$", "dropped connection"),
    (
        r"^compiling takes minutes, hence only (.+)$",
        r"compiling takes minutes, so only \1 are compiled",
    ),
    (
        r"float32 itself is off by (\S+)",
        r"torch in float32 differs from float64 by \1, so it is not a usable reference",
    ),
    (r" of the largest value, allowed is ", " times the largest value; the limit is "),
)
"""Patterns of recorded texts, and what the documents say instead."""


def reword(text: str) -> str:
    """Return a recorded label, reason or error message as the documents show it."""
    for pattern, replacement in _REWORDED:
        text = re.sub(pattern, replacement, text)
    return text


def join_words(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
