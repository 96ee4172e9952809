"""A JPEG file of very many scans is refused before each of them costs a pass over the image."""

import io
import time

import pytest
from PIL import Image

from headkit.adapters.images.jpeg import MAX_SCANS, count_scans
from headkit.adapters.images.open import open_image
from headkit.adapters.images.pixels import UnreadableImage


def progressive(repeats: int = 0, side: int = 64) -> bytes:
    """Return a progressive file in which a scan of a few bytes is repeated."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    starts = [place for place in range(len(content)) if content[place:].startswith(b"\xff\xda")]
    scan = content[starts[2] : starts[3]]
    return content[:-2] + scan * repeats + content[-2:]


def test_scans_are_counted() -> None:
    assert count_scans(progressive()) == 10
    assert count_scans(progressive(5)) == 15
    assert count_scans(progressive() + progressive(500)) == 10  # what follows is not decoded
    buffer = io.BytesIO()
    Image.effect_noise((500, 500), 100).save(buffer, "JPEG", comment=b"\xff\xda" * 200)
    assert count_scans(buffer.getvalue()) == 1


def test_very_many_scans_are_refused_at_once() -> None:
    assert open_image(progressive(MAX_SCANS - 10)).size == (64, 64)
    content = progressive(20_000, side=2000)
    start = time.monotonic()
    with pytest.raises(UnreadableImage, match="20,010 scans, expected at most 100"):
        open_image(content)
    assert time.monotonic() - start < 5
