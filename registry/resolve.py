"""What a word means that may be an architecture or a head."""

from __future__ import annotations

from pathlib import Path

from headkit.adapters.errors import DependencyMissing, HeadkitError, StoreError, UnknownArchitecture
from headkit.adapters.heads.reference import head_path, is_head

from .catalogue import architecture


def head_of_word(word: str | Path) -> Path | None:
    """Return the head file that a word names; none if it is an architecture.

    Raises:
        UnknownArchitecture: it is neither.
        RegistryError: it is a reference by its form, and names nothing.
    """
    if is_head(word):
        return head_path(word)
    try:
        architecture(str(word))
    except UnknownArchitecture:
        try:
            path = head_path(word)
        except (StoreError, DependencyMissing):
            raise
        except HeadkitError:
            path = Path(word)
        if not path.is_file():
            raise
        return path
    return None
