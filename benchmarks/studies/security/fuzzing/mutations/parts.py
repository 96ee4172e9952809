"""One input of several parts, such as a model and a head: parts with names, in one file."""

from __future__ import annotations

import struct
from collections.abc import Mapping


def join(parts: Mapping[str, bytes]) -> bytes:
    """Return the bytes of named parts; equal parts in the same order give equal bytes."""
    pieces = []
    for name, content in parts.items():
        label = name.encode("utf-8", "surrogatepass")
        pieces += [struct.pack("<II", len(label), len(content)), label, content]
    return b"".join(pieces)


def split(content: bytes) -> dict[str, bytes]:
    """Return the parts that ``join`` joined."""
    parts, at = {}, 0
    while at < len(content):
        label, length = struct.unpack_from("<II", content, at)
        at += 8
        name = content[at : at + label].decode("utf-8", "surrogatepass")
        at += label
        parts[name] = content[at : at + length]
        at += length
    return parts
