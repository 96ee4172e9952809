"""The rule by which an image file becomes pixels. Heads record it, so that it never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Orientation = Literal["exif", "ignored"]
Alpha = Literal["white", "dropped"]
Depth = Literal["high_byte", "8_bits"]


@dataclass(frozen=True)
class PixelRule:
    """The rule by which an image becomes 8-bit pixels without transparency.

    Attributes:
        orientation: ``exif`` turns the image as its EXIF orientation says. ``ignored`` leaves the
            stored order of the pixels, except that Pillow itself turns TIFF files.
        alpha: ``white`` lays transparent images on white. ``dropped`` shows the colours that are
            stored under transparent pixels.
        depth: ``high_byte`` takes the upper 8 bits of 16-bit grey images. ``8_bits`` refuses them.
            Under both rules, Pillow takes the upper 8 bits of 16-bit colour images.
    """

    orientation: Orientation = "exif"
    alpha: Alpha = "white"
    depth: Depth = "high_byte"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: A value is unknown.
        """
        for name, allowed in _ALLOWED.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(allowed)}")

    def to_json(self) -> dict[str, str]:
        """Return the rule as it stands in a head file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> PixelRule:
        """Read the rule from a head file.

        Raises:
            ValueError: The rule is not complete, or a value is unknown.
        """
        if not isinstance(value, Mapping) or not all(name in value for name in _ALLOWED):
            raise ValueError(
                f"pixels is {value!r:.200}, expected an object with {', '.join(_ALLOWED)}"
            )
        return cls(**{name: value[name] for name in _ALLOWED})


_ALLOWED: dict[str, tuple[Any, ...]] = {
    "orientation": get_args(Orientation),
    "alpha": get_args(Alpha),
    "depth": get_args(Depth),
}
CURRENT_RULE = PixelRule()
"""The rule that ``fit`` uses and records."""
VERSION_1_RULE = PixelRule("ignored", "dropped", "8_bits")
"""The rule of heads that record none: those in head files of version 1."""
