"""A door: valid inputs, changed inputs, and what happens to one input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random


@dataclass(frozen=True)
class Door:
    """A place where bytes from outside enter.

    Attributes:
        seeds: Valid inputs.
        change: Function that returns a changed input; the generator decides about everything.
        enter: Function that passes one input through the door. It returns if the input is
            accepted, and raises ``HeadkitError`` if it is refused; anything else is a fault.
    """

    seeds: Sequence[bytes]
    change: Callable[[bytes, Random], bytes]
    enter: Callable[[bytes], None]

    def input(self, name: str, seed: int, number: int) -> bytes:
        """Return input ``number`` of a seed, always the same for the same valid inputs."""
        digest = sha256(f"{name} {seed} {number}".encode()).digest()
        random = Random(int.from_bytes(digest))  # noqa: S311  (no secret)
        return self.change(random.choice(self.seeds), random)
