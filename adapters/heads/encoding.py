"""The bytes of a head file: a description and tensors as safetensors stores them."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from headkit.adapters.bounds import describe
from headkit.adapters.errors import HeadFormatError
from headkit.adapters.tensor_bytes import to_safetensors

from .checksum import CHECKSUM, compute_checksum

FORMAT = "headkit"
VERSIONS = ("1", "2")
"""Versions that are read. Version 1 is written for a head that has nothing that it cannot say."""
_ADDED_IN_2 = ("pixels", "requires", "levels", "thresholds", "delta")


def encode(
    description: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]], version: str
) -> bytes:
    """Return the content of a head file; equal descriptions and tensors give equal bytes.

    Args:
        description: The entry ``head``.
        tensors: Arrays by name.
        version: One of ``VERSIONS``.

    Raises:
        HeadFormatError: A value cannot be written.
    """
    try:
        text = json.dumps(description, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except TypeError as error:
        raise HeadFormatError(f"a value of the head cannot be written as JSON: {error}") from error
    metadata = {"format": FORMAT, "version": version, "head": text}
    try:
        if version != "1":
            metadata[CHECKSUM] = compute_checksum(text, tensors)
        return _sort_header(to_safetensors(tensors, metadata))
    except UnicodeEncodeError as error:
        raise HeadFormatError(
            f"a string in the head's description is not valid Unicode: {error}"
        ) from error


def decode_description(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry ``head`` of a head file's metadata, as its version understands it.

    Raises:
        HeadFormatError: The metadata are not those of a head file that this headkit reads.
        ValueError: The entry is not JSON.
    """
    if metadata.get("format") != FORMAT:
        raise HeadFormatError(
            f"its format is {metadata.get('format')!r:.50}, expected {FORMAT!r}: "
            "it has tensors, but is not a head that headkit wrote"
        )
    version = metadata.get("version")
    if version not in VERSIONS:
        raise HeadFormatError(
            f"its version is {version!r:.50}, but this headkit reads {' and '.join(VERSIONS)}: "
            "install a newer headkit"
        )
    description = json.loads(metadata.get("head", ""))
    if not isinstance(description, dict):
        raise HeadFormatError(f"head is {describe(description)}, expected an object")
    # Version 1 ignores keys that it does not know; version 2 always has its rule.
    if version == "1":
        return {k: v for k, v in description.items() if k not in _ADDED_IN_2}
    if "pixels" not in description:
        raise HeadFormatError("head.pixels is missing")
    return description


def _sort_header(content: bytes) -> bytes:
    """Sort the header: safetensors writes ``__metadata__`` in an order that changes."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
