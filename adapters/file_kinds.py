"""Kinds of files: their suffixes, and messages for a file of the wrong kind."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import ExportError, HeadFormatError, HeadkitError, OutputError
from .files import check_writable, is_file, is_same_file

MAX_HEADER_BYTES = 2**25
"""Maximum length of a safetensors header that is read to detect the kind of a file."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        noun: The name that messages use, with its article.
        suffix: The end of the file's name.
        error: The error to raise if a file of another kind takes its place.
    """

    noun: str
    suffix: str
    error: type[HeadkitError]


HEAD = FileKind("a head file", ".safetensors", HeadFormatError)
MODEL = FileKind("an ONNX model", ".onnx", ExportError)
ADAPTER = FileKind("an adapter file of ONNX Runtime", ".onnx_adapter", ExportError)
TENSORS = FileKind("a file of tensors without a head", ".safetensors", HeadkitError)


def check_output(path: str | Path, *kinds: FileKind, inputs: Iterable[object] = ()) -> Path:
    """Raise an error now, not after minutes of work, if a file of ``kinds`` cannot be written.

    Args:
        path: The file to write.
        *kinds: The kinds of files that it may be.
        inputs: What is read; the paths among it are not to be replaced.

    Raises:
        OutputError: ``path`` has a suffix of none of the kinds, or is an input; or see
            ``check_writable``.
    """
    path = Path(path)
    if path.suffix not in [kind.suffix for kind in kinds]:
        expected = " or ".join(f"{kind.suffix!r} for {kind.noun}" for kind in kinds)
        raise OutputError(
            f"cannot write {path}: its suffix is {path.suffix!r}, expected {expected}"
        )
    if any(isinstance(one, str | Path) and is_same_file(one, path) for one in inputs):
        raise OutputError(f"cannot write {path}: it is also an input; choose another path")
    return check_writable(path)


def detect_file_kind(path: str | Path) -> FileKind | None:
    """Return the kind of a file: by its content if that shows the kind, else by its suffix.

    Returns:
        The kind, or None if there is no such file or its kind is unknown.
    """
    path = Path(path)
    if not is_file(path):
        return None
    try:
        with path.open("rb") as file:
            kind = _detect_safetensors(file, path.stat().st_size)
    except OSError:
        kind = None
    return kind or next((kind for kind in (MODEL, ADAPTER) if path.suffix == kind.suffix), None)


def detect_content_kind(content: bytes) -> FileKind | None:
    """Return the kind of a file's content, or None if the content does not show it."""
    return _detect_safetensors(io.BytesIO(content), len(content))


def explain_wrong_kind(path: str | Path, expected: FileKind) -> str | None:
    """Return a message if a file is of another known kind than ``expected``, else None."""
    actual = detect_file_kind(path)
    if actual is None or actual is expected:
        return None
    return f"it is {actual.noun}, expected {expected.noun} (NAME{expected.suffix})"


def check_argument(argument: str, path: object, expected: FileKind, usage: str) -> None:
    """Raise an error if an argument is a file of the wrong kind, such as a head for a model.

    Args:
        argument: Name of the argument.
        path: Value of the argument; a value that is not the path of a file passes.
        expected: Kind of file that the argument takes.
        usage: How to write the call.

    Raises:
        HeadkitError: The file has another kind. The error is that of ``expected``; its message has
            the argument, its value and the usage.
    """
    mistake = explain_wrong_kind(path, expected) if isinstance(path, str | Path) else None
    if mistake is not None:
        raise expected.error(f"cannot use {path} as {argument}: {mistake}; pass {usage}")


def _detect_safetensors(file: BinaryIO, size: int) -> FileKind | None:
    """Return the kind of a safetensors file of ``size`` bytes; None for any other file."""
    try:
        start = file.read(9)
        if len(start) < 9 or start[8:] != b"{":
            return None
        (length,) = struct.unpack("<Q", start[:8])
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            return None
        header = json.loads(start[8:] + file.read(length - 1))
    except (OSError, ValueError, RecursionError):
        return None
    metadata = header.get("__metadata__", {})
    is_head = isinstance(metadata, dict) and metadata.get("format") == "headkit"
    return HEAD if is_head else TENSORS
