"""The sets of levels that a head may read, from the simplest to the largest."""

from __future__ import annotations

from collections.abc import Sequence

from headkit.adapters.backbone.level import LAST

MAX_SINGLE = 2
"""Maximum number of levels that are tried alone beside the last features."""


def candidate_sets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return sets of levels, the simplest first.

    The sets are the last features alone, the last features with one of the two deepest other
    levels, and all levels.

    Args:
        names: Names of all levels in the order of the model; the first is ``last``.
    """
    others = [name for name in names if name != LAST]
    sets = [(LAST,), *((LAST, one) for one in others[-MAX_SINGLE:])]
    if len(others) > 1:
        sets.append((LAST, *others))
    return sets
