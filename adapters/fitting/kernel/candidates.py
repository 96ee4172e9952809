"""The sets of levels that a head may read, from the simplest to the largest."""

from __future__ import annotations

from collections.abc import Sequence

from headkit.adapters.backbone.level import LAST

MAX_SINGLE = 2
"""Maximum number of levels that are tried alone beside the last features."""


def candidate_sets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return sets of levels, the simplest first.

    The sets are the last features alone, the last features and one other level, all levels but the
    deepest, whose map becomes the last features, and all levels.

    Args:
        names: Names of all levels in the order of the model; the first is ``last``.
    """
    others = [name for name in names if name != LAST]
    singles = others[-MAX_SINGLE - 1 : -1] or others
    sets = [(LAST,), *((LAST, one) for one in singles)]
    if len(others) > 2:
        sets.append((LAST, *others[:-1]))
    if len(others) > 1:
        sets.append((LAST, *others))
    return sets
