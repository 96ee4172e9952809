"""The image formats that are read. There is no other list of them."""

from __future__ import annotations

import os
from pathlib import Path

FORMATS: dict[str, tuple[str, ...]] = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg"),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""Pillow's names of the formats that are read, and the suffixes of their files.

Pillow decodes some of the other formats before it knows the size of the image.
"""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Lowercase suffixes of the files in a folder that are images."""
_UNREAD = (
    "apng arw avif avifs blp bpg cr2 cr3 cur dcm dds dib djvu dng dpx emf eps exr fits fli fpx hdr "
    "heic heics heif heifs icns ico iff im j2c j2k jfif jls jng jp2 jpc jpe jpf jpm jps jpx jxl "
    "jxr mng mpo nef nii npy npz nrrd orf pam pbm pcx pdf pef pfm pgm pict pnm psd pxr qoi raf ras "
    "raw rgb rgba rw2 sgi sr2 srw svg svgz tga vips wbmp wdp webm wmf x3f xbm xcf xpm"
)
UNREAD_SUFFIXES = frozenset(f".{name}" for name in _UNREAD.split()) - SUFFIXES
"""Lowercase suffixes of other files that hold images, which are counted and not read."""


def is_image(path: str | Path) -> bool:
    """Return True if the suffix of ``path`` is one of ``SUFFIXES``, in any case."""
    return os.path.splitext(path)[1].lower() in SUFFIXES  # noqa: PTH122 - as timm; much faster
