"""Count the scans of a JPEG file before it is decoded.

A progressive file has about ten scans. Each costs the decoder a pass over the whole image, even if
it has 40 bytes, so that a small file with thousands of them takes minutes.
"""

from __future__ import annotations

import re

MAX_SCANS = 100
"""Maximum number of scans of a JPEG file that is decoded."""
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_START_OF_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def count_scans(content: bytes) -> int:
    """Return the number of scans until the end of the image; what follows it does not count."""
    scans, place = 0, 0
    while (found := _MARKER.search(content, place)) is not None:
        marker, place = found[1][0], found.end()
        if marker == _END:
            break
        scans += marker == _START_OF_SCAN
        if marker not in _WITHOUT_LENGTH:
            place += max(int.from_bytes(content[place : place + 2]), 2)
    return scans
