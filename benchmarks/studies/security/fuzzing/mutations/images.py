"""Change image files: chunks, sizes, segments, tags; and make small files of huge images."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from PIL import Image

from .byte_edits import edit_bytes

_EDGES = (
    0,
    1,
    2,
    255,
    256,
    5000,
    7000,
    9400,
    13_300,
    20_000,
    65_535,
    100_000,
    2**31 - 1,
    2**32 - 1,
)
_PNG_START = b"\x89PNG\r\n\x1a\n"


def draw_images() -> list[bytes]:
    """Return small images of all formats and of most modes."""
    generator = np.random.default_rng(0)
    colours = Image.fromarray(generator.integers(0, 255, (24, 20, 3), dtype=np.uint8))
    alpha = Image.fromarray(generator.integers(0, 255, (24, 20, 4), dtype=np.uint8))
    depth = Image.fromarray(generator.integers(0, 65_535, (24, 20), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [colours.convert("P"), colours.rotate(90).convert("P")]
    saved: Sequence[tuple[Image.Image, str, dict[str, object]]] = (
        (colours, "PNG", {"exif": exif}),
        (alpha, "PNG", {}),
        (colours.convert("P"), "PNG", {"transparency": 3}),
        (depth, "PNG", {}),
        (colours.convert("1"), "PNG", {}),
        (colours, "JPEG", {"exif": exif}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours, "JPEG", {"progressive": True}),
        (frames[0], "GIF", {"save_all": True, "append_images": frames[1:], "transparency": 0}),
        (colours, "TIFF", {"compression": "tiff_lzw", "exif": exif}),
        (depth, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (colours.convert("1"), "TIFF", {"compression": "group4"}),
        (alpha, "TIFF", {}),
        (colours, "WEBP", {"exif": exif}),
        (alpha, "WEBP", {"lossless": True}),
        (colours, "BMP", {}),
        (colours.convert("P"), "BMP", {}),
        (colours, "PPM", {}),
    )
    files = []
    for image, kind, options in saved:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def edit_image(content: bytes, random: Random) -> bytes:
    """Return an image file with one to three changes in the structure of its format."""
    if random.random() < 0.15:
        return edit_bytes(content, random)
    if random.random() < 0.06:
        return _bomb(random)
    edit = next((edit for start, edit in _EDITS if content.startswith(start)), edit_bytes)
    for _ in range(random.choice((1, 1, 2, 3))):
        content = edit(content, random)
    return content


def _bomb(random: Random) -> bytes:
    """Return a small PNG or GIF file of very many pixels."""
    width, height = random.choice(_EDGES[3:10]), random.choice(_EDGES[3:11])
    if random.random() < 0.2:
        return (
            b"GIF89a"
            + struct.pack("<HHBBB", width % 65_536, height % 65_536, 0xF0, 0, 0)
            + (
                b"\0\0\0\xff\xff\xff,\0\0\0\0"
                + struct.pack("<HHB", width % 65_536, height % 65_536, 0)
                + b"\x02\x02D\x01\0;"
            )
        )
    color = random.choice((0, 2, 3, 4, 6))
    depth = random.choice((1, 8) if color in (0, 3) else (8, 16))
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = (width * channels * depth + 7) // 8 + 1
    packer = zlib.compressobj(9)
    # The file has at most 40 MB of pixels; the rest of the image is missing.
    data = packer.compress(bytes(min(row * height, 40_000_000))) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))]
    if color == 3:
        chunks += [(b"PLTE", bytes(range(9))), (b"tRNS", b"\0\x80\xff")]
    return _join_png([*chunks, (b"IDAT", data), (b"IEND", b"")])


def _split_png(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], len(_PNG_START)
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def _join_png(chunks: Sequence[tuple[bytes, bytes]]) -> bytes:
    pieces = [_PNG_START]
    for kind, data in chunks:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        pieces += [struct.pack(">I", len(data)), kind, data, crc]
    return b"".join(pieces)


def _edit_png(content: bytes, random: Random) -> bytes:
    chunks = _split_png(content)
    if not chunks:
        return edit_bytes(content, random)
    at = random.randrange(len(chunks))
    kind, data = chunks[at]
    action = random.randrange(7)
    if action == 0 and chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13:
        header = list(struct.unpack(">IIBBBBB", chunks[0][1]))
        field = random.randrange(7)
        header[field] = random.choice(_EDGES) if field < 2 else random.randrange(20)
        chunks[0] = (b"IHDR", struct.pack(">IIBBBBB", *header))
    elif action == 1:
        del chunks[at]
    elif action == 2:
        chunks.insert(random.randrange(len(chunks) + 1), chunks[at])
    elif action == 3:
        random.shuffle(chunks)
    elif action == 4:
        chunks[at] = (random.choice((b"IDAT", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"eXIf")), data)
    elif action == 5:
        packed = zlib.compress(bytes(random.choice((100, 2_000_000, 80_000_000))))
        added = random.choice(
            (
                (b"zTXt", b"a\0\0" + packed),
                (b"iCCP", b"a\0\0" + packed),
                (b"iTXt", b"a\0\1\0\0\0" + packed),
                (b"tEXt", b"a\0" + random.randbytes(50)),
                (b"eXIf", random.randbytes(40)),
                (b"gAMA", b"\0\0\0\0"),
                (b"tRNS", random.randbytes(random.choice((1, 2, 6, 300)))),
            )
        )
        chunks.insert(random.randrange(1, len(chunks) + 1), added)
    else:
        chunks[at] = (kind, edit_bytes(data, random))
    return _join_png(chunks)


def _edit_jpeg(content: bytes, random: Random) -> bytes:
    """Change the segments before the image data: sizes, tables, EXIF."""
    segments, at = [], 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", content, at + 2)
        segments.append(content[at : at + 2 + length])
        at += 2 + max(length, 2)
    data = content[at:]
    if not segments:
        return edit_bytes(content, random)
    place = random.randrange(len(segments))
    frames = [n for n, one in enumerate(segments) if one[1] in (0xC0, 0xC1, 0xC2)]
    action = random.randrange(6)
    if action <= 1 and frames and len(segments[frames[0]]) > 9:
        one = segments[frames[0]]
        size = struct.pack(">HH", *(random.choice(_EDGES) % 65_536 for _ in range(2)))
        segments[frames[0]] = one[:5] + size + one[9:]
    elif action == 2:
        del segments[place]
    elif action == 3:
        segments.insert(random.randrange(len(segments) + 1), segments[place])
    elif action == 4:
        data = edit_bytes(data, random)
    else:
        segments[place] = segments[place][:4] + edit_bytes(segments[place][4:], random)
    return content[:2] + b"".join(segments) + data


def _edit_tiff(content: bytes, random: Random) -> bytes:
    """Change one entry of the first directory of a little-endian file."""
    if len(content) < 8:
        return edit_bytes(content, random)
    (start,) = struct.unpack_from("<I", content, 4)
    if start + 2 > len(content):
        return edit_bytes(content, random)
    (count,) = struct.unpack_from("<H", content, start)
    at = start + 2 + 12 * random.randrange(max(count, 1))
    if at + 12 > len(content):
        return edit_bytes(content, random)
    tag, kind, number, value = struct.unpack_from("<HHII", content, at)
    field = random.randrange(5)
    if field == 0:
        tag = random.choice((256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 338))
    elif field == 1:
        kind = random.randrange(20)
    elif field == 2:
        number = random.choice((0, 1, 2, 3, 1000, 2**28, 2**32 - 1))
    else:
        value = random.choice((*_EDGES, start, len(content), 8, 32_773, 34_712, 7))
    return content[:at] + struct.pack("<HHII", tag, kind, number, value) + content[at + 12 :]


def _edit_at(places: Sequence[int], code: str) -> Callable[[bytes, Random], bytes]:
    """Return a function that changes one of the numbers at fixed places."""

    def edit(content: bytes, random: Random) -> bytes:
        size = struct.calcsize(code)
        at = random.choice([place for place in places if place + size <= len(content)] or [0])
        number = random.choice((*_EDGES, len(content), 24, 32)) % 256**size
        content = content[:at] + struct.pack(code, number) + content[at + size :]
        return content if random.random() < 0.7 else edit_bytes(content, random)

    return edit


_EDITS: tuple[tuple[bytes, Callable[[bytes, Random], bytes]], ...] = (
    (_PNG_START, _edit_png),
    (b"\xff\xd8", _edit_jpeg),
    (b"II*\0", _edit_tiff),
    (b"GIF8", _edit_at((6, 8, 10, 18, 20, 22, 24), "<H")),
    (b"BM", _edit_at((2, 10, 14, 18, 22, 28, 30, 34, 46), "<I")),
    (b"RIFF", _edit_at((4, 16, 20, 24, 26, 28, 30), "<I")),
)
