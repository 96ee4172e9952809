"""Small files with very many pixels, forty at a time.

At 64f666f, 49 megapixels of one colour in 143 KB were below the limit of 50 megapixels and were
decoded, and the memory of the server grew to 1.9 GB. Now the limit is 25 megapixels, images share a
budget of pixels that are decoded at the same time, and the smallest ones go first.
"""

import threading
import time
from typing import Any

import pytest

from .server import SECONDS, Server, solid

KINDS: dict[str, dict[str, Any]] = {
    "PNG": {"kind": "PNG"},
    "progressive JPEG": {"kind": "JPEG", "progressive": True},
    "GIF": {"kind": "GIF", "mode": "P"},
    "TIFF": {"kind": "TIFF", "compression": "tiff_lzw"},
    "WebP": {"kind": "WEBP"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_49_megapixels_are_refused_before_they_are_decoded(server: Server, kind: str) -> None:
    image = solid(7000, **KINDS[kind])
    status, answer = server.predict(image, "cat")
    assert status == 413
    assert "49000000" in answer["detail"] or "7000 x 7000" in answer["detail"]


def test_images_just_below_the_limit_do_not_keep_small_ones_waiting(
    server: Server, background: list[threading.Thread]
) -> None:
    image = solid(4990, mode="RGBA")
    for _ in range(15):
        background.append(threading.Thread(target=server.predict, args=(image, "cat")))
        background[-1].start()
    time.sleep(0.5)
    assert server.seconds() < SECONDS / 3
    assert server.megabytes < 1000
