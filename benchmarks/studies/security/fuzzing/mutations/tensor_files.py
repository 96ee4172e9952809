"""Change safetensors files: header, types, shapes, offsets, metadata, numbers and lengths."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from .byte_edits import edit_bytes
from .json_values import STRANGE_TEXTS, edit_json, encode, strange_value

DTYPES = (
    *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "U16", "U32", "U64", "BOOL"),
    *("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "C64", "f32", "", "F128"),
)
EditMetadata = Callable[[dict[str, Any], Random], None]
"""Changes ``__metadata__`` of a header in place."""
_SIZES = (0, 1, 2, 3, 4, 7, 8, 16, 1000, 65_536, 20_000_000, 2**31, 2**40, 2**62, 2**63, -1)


def read_parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a safetensors file."""
    (length,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_parts(header: Any, data: bytes) -> bytes:
    """Return a safetensors file; the header may be anything that can be written as JSON."""
    text = encode(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def edit_tensor_file(
    content: bytes, random: Random, edit_metadata: EditMetadata | None = None
) -> bytes:
    """Return a safetensors file with one to three changes.

    Args:
        content: A valid file.
        random: Generator that decides about everything.
        edit_metadata: Changes the metadata, if the format has some.
    """
    if random.random() < 0.1:
        return edit_bytes(content, random)
    header, data = read_parts(content)
    actions = [_edit_tensor, _edit_tensor, _edit_names, _edit_data, _edit_header]
    for _ in range(random.choice((1, 1, 2, 3))):
        metadata = header.get("__metadata__")
        if edit_metadata is not None and isinstance(metadata, dict) and random.random() < 0.6:
            edit_metadata(metadata, random)
        else:
            data = random.choice(actions)(header, data, random)
    content = write_parts(header, data)
    if random.random() < 0.05:
        length = random.choice((0, 1, 7, 2**31, 2**63, 2**64 - 1, 100_000_001, len(content)))
        content = struct.pack("<Q", length) + content[8:]
    return content


def edit_json_entry(
    metadata: dict[str, Any], key: str, random: Random, names: Sequence[str] = ()
) -> None:
    """Change the JSON text in one entry of the metadata in place."""
    try:
        metadata[key] = edit_json(metadata[key], random, names)
    except (KeyError, TypeError, ValueError, RecursionError):  # it was changed before
        metadata[key] = random.choice(STRANGE_TEXTS)


def _tensor_names(header: dict[str, Any]) -> list[str]:
    return [name for name in header if name != "__metadata__"]


def _edit_tensor(header: dict[str, Any], data: bytes, random: Random) -> bytes:
    names = _tensor_names(header)
    entry = header[random.choice(names)] if names else None
    if not isinstance(entry, dict):
        return data
    key = random.choice(("dtype", "shape", "shape", "data_offsets"))
    value = entry.get(key)
    if random.random() < 0.15:
        entry[key] = strange_value(random)
    elif key == "dtype":
        entry[key] = random.choice(DTYPES)
    elif isinstance(value, list) and value:
        at = random.randrange(len(value))
        value[at] = random.choice((*_SIZES, len(data), len(data) // 2))
    elif isinstance(value, list):
        value.append(random.choice(_SIZES))
    return data


def _edit_names(header: dict[str, Any], data: bytes, random: Random) -> bytes:
    names = _tensor_names(header)
    if not names:
        return data
    name = random.choice(names)
    action = random.randrange(4)
    if action == 0:
        del header[name]
    elif action == 1:
        header[random.choice((*STRANGE_TEXTS, f"{name}x", name.upper()))] = header.pop(name)
    elif action == 2:
        new = random.choice((f"{name}.extra", "extra.weight", "head/x"))
        header[new] = copy.copy(header[random.choice(names)])
    else:
        other = random.choice(names)
        header[name], header[other] = header[other], header[name]
    return data


def _edit_data(_header: dict[str, Any], data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) // 4 + 1) * 4
    special = (float("nan"), float("inf"), -float("inf"), 3e38, 1e-45)
    return random.choice(
        (
            data[:at],
            data + b"\0" * random.choice((1, 4, 4096)),
            data[:at] + struct.pack("<f", random.choice(special)) + data[at + 4 :],
            edit_bytes(data, random),
        )
    )


def _edit_header(header: dict[str, Any], data: bytes, random: Random) -> bytes:
    key = random.choice([*header, "__metadata__", "extra"])
    header[key] = strange_value(random)
    return data
