"""A level: an intermediate output of a backbone, pooled to a vector. This module has no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from headkit.adapters.bounds import Bound, check_object, integer, one_of, optional, text

LAST = "last"
"""Name of the last features, those that enter the architecture's own classifier."""
ALL = "all"
"""Stands for the names of all levels."""
LAYOUTS = ("", "NCHW", "NHWC", "NLC", "reroll")
"""Layouts of a level's map: "" for the last features, which are a vector; NLC for tokens; reroll
for tokens that the model's method ``reroll`` lays out."""
MAX_NAME = 200
MAX_WIDTH = 2**24


@dataclass(frozen=True)
class Level:
    """An intermediate output of a backbone, pooled to a vector; or the last features.

    docs/head-file.md says how the vector is computed.

    Attributes:
        name: Path of the module whose output it is; ``last`` for the last features. If several
            items of one module's output are levels, ``:`` and the item follow the path.
        width: Length of the vector.
        layout: ``NCHW``, ``NHWC`` or ``NLC`` (tokens); empty for the last features.
        prefix: Number of tokens before the patch tokens.
        item: Index into the module's output if the output is a tuple or a list.
    """

    name: str
    width: int
    layout: str = ""
    prefix: int = 0
    item: int | None = None

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is out of bounds.
        """
        check_object(vars(self), _LEVEL, _REQUIRED, "level")
        if (self.name == LAST) != (self.layout == ""):
            raise ValueError(
                f"level.layout of {self.name} is {self.layout!r}, expected "
                + ("''" if self.name == LAST else f"one of {', '.join(LAYOUTS[1:])}")
            )
        if self.prefix and self.layout != "NLC":
            raise ValueError(
                f"level.prefix of {self.name} is {self.prefix}, expected 0: only tokens (NLC) have "
                "a prefix"
            )

    @property
    def path(self) -> str:
        """Path of the module."""
        return self.name.partition(":")[0]

    def to_json(self) -> dict[str, Any]:
        """Return the level as it stands in a head file, without values that are the default."""
        values = {one.name: (getattr(self, one.name), one.default) for one in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    @classmethod
    def from_json(cls, value: object, where: str = "level") -> Level:
        """Read a level from a file. Unknown keys are ignored.

        Args:
            value: The level as it stands in the file.
            where: What messages call it.

        Raises:
            ValueError: A key is missing, or a value is out of bounds.
        """
        return cls(**check_object(value, _LEVEL, _REQUIRED, where))


LevelNames: TypeAlias = str | Level | Sequence[str | Level]
"""How a caller names levels, see ``level_names``."""


def level_names(levels: LevelNames) -> list[str]:
    """Return the names of levels that an argument gives, each once.

    Args:
        levels: A name, several names separated by commas, a level, or a sequence of names and
            levels.

    Raises:
        ValueError: There is no name, or something else than names and levels.
    """
    given = [levels] if isinstance(levels, str | Level) else levels
    if not isinstance(given, Iterable):
        raise ValueError(f"levels is {levels!r}, {_EXPECTED}")
    names: dict[str, None] = {}
    for one in given:
        if isinstance(one, Level):
            names[one.name] = None
        elif isinstance(one, str):
            names.update((part.strip(), None) for part in one.split(",") if part.strip())
        else:
            raise ValueError(f"levels has {one!r}, {_EXPECTED}")
    if not names:
        raise ValueError(f"levels is empty, {_EXPECTED}")
    return list(names)


_EXPECTED = "expected 'all', 'last' or names of levels, such as headkit.levels(model) lists"
_LEVEL: Mapping[str, Bound] = {
    "name": text(
        MAX_NAME,
        r"[A-Za-z0-9_.]+(:[0-9]+)?",
        f"the path of a module, or path:item: at most {MAX_NAME} letters, digits, '_' and '.'",
    ),
    "width": integer(1, MAX_WIDTH),
    "layout": one_of(*LAYOUTS),
    "prefix": integer(0, 2**16),
    "item": optional(integer(0, 1000)),
}
_REQUIRED = frozenset({"name", "width"})
