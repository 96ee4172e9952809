"""Change bytes without knowing what they mean."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63)


def edit_bytes(content: bytes, random: Random) -> bytes:
    """Return the content with one to three changes at random places."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(_EDITS)(content, random)
    return content


def _flip(content: bytes, random: Random) -> bytes:
    if not content:
        return content
    at = random.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << random.randrange(8)]) + content[at + 1 :]


def _write_number(content: bytes, random: Random) -> bytes:
    code = random.choice("BHIQ")
    order = random.choice("<>")
    number = random.choice(_NUMBERS) % 2 ** (8 * struct.calcsize(code))
    written = struct.pack(order + code, number)
    at = random.randrange(len(content) + 1)
    return content[:at] + written + content[at + len(written) :]


def _cut(content: bytes, random: Random) -> bytes:
    return content[: random.randrange(len(content) + 1)]


def _remove(content: bytes, random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:start] + content[end:]


def _repeat(content: bytes, random: Random) -> bytes:
    start, end = _range(content, random)
    return content[:end] + content[start:end] * random.choice((1, 1, 7)) + content[end:]


def _insert(content: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    added = random.choice((b"\0" * 64, b"\xff" * 16, random.randbytes(random.randrange(1, 40))))
    return content[:at] + added + content[at:]


def _move(content: bytes, random: Random) -> bytes:
    start, end = _range(content, random)
    rest = content[:start] + content[end:]
    at = random.randrange(len(rest) + 1)
    return rest[:at] + content[start:end] + rest[at:]


def _range(content: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(content) + 1)
    longest = random.choice((4, 64, max(len(content), 1)))
    return start, min(start + random.randrange(1, longest + 1), len(content))


_EDITS: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(_flip, _flip, _flip, _write_number, _write_number),
    *(_cut, _remove, _repeat, _insert, _move),
)
