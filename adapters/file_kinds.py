"""Kinds of files: which suffix each has, and what to say where one stands in place of another."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import ExportError, HeadFormatError, HeadkitError, OutputError
from .files import check_writable

MAX_HEADER_BYTES = 2**25
"""Length of a safetensors header that is still read to learn what the file is."""


@dataclass(frozen=True)
class FileKind:
    """A kind of file.

    Attributes:
        noun: what messages call it, with its article.
        suffix: end of the file's name.
        error: raised where another kind of file stands in its place.
    """

    noun: str
    suffix: str
    error: type[HeadkitError]


HEAD = FileKind("a head file", ".safetensors", HeadFormatError)
MODEL = FileKind("an ONNX model", ".onnx", ExportError)
ADAPTER = FileKind("an adapter file of ONNX Runtime", ".onnx_adapter", ExportError)
TENSORS = FileKind("a file of tensors without a head", ".safetensors", HeadkitError)


def check_output(path: str | Path, *kinds: FileKind) -> Path:
    """Fail now, not after minutes of work, if a file of one of ``kinds`` cannot be written.

    Raises:
        OutputError: ``path`` has another suffix; or see ``check_writable``.
    """
    path = Path(path)
    if path.suffix not in [kind.suffix for kind in kinds]:
        expected = " or ".join(f"{kind.suffix!r} for {kind.noun}" for kind in kinds)
        raise OutputError(
            f"cannot write {path}: its suffix is {path.suffix!r}, expected {expected}"
        )
    return check_writable(path)


def detect_file_kind(path: str | Path) -> FileKind | None:
    """Return what a file is, by its content where that says so and else by its suffix.

    Returns:
        None if there is no such file, or it is of no kind that is known here.
    """
    path = Path(path)
    if not path.is_file():
        return None
    metadata = _safetensors_metadata(path)
    if metadata is not None:
        return HEAD if metadata.get("format") == "headkit" else TENSORS
    return next((kind for kind in (MODEL, ADAPTER) if path.suffix == kind.suffix), None)


def explain_wrong_kind(path: str | Path, expected: FileKind) -> str | None:
    """Return what to say of a file that is not of the ``expected`` kind, but of another one."""
    found = detect_file_kind(path)
    if found is None or found is expected:
        return None
    return f"it is {found.noun}, expected {expected.noun} (NAME{expected.suffix})"


def check_argument(argument: str, path: object, expected: FileKind, usage: str) -> None:
    """Refuse a file of another kind than an argument takes, such as a head for a model.

    Args:
        argument: name of the argument.
        path: its value; whatever is no path of a file passes.
        expected: kind of file that it takes.
        usage: how the call is written.

    Raises:
        HeadkitError: the error of ``expected``; names the argument, what it got, and the usage.
    """
    mistake = explain_wrong_kind(path, expected) if isinstance(path, str | Path) else None
    if mistake is not None:
        raise expected.error(f"{argument} is {path}: {mistake}; write {usage}")


def _safetensors_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a safetensors file; None if it is no such file."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
            if len(start) < 9 or start[8:] != b"{":
                return None
            (length,) = struct.unpack("<Q", start[:8])
            if length > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
                return None
            header = json.loads(start[8:] + file.read(length - 1))
    except (OSError, ValueError, RecursionError):
        return None
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}
