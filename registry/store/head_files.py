"""Read the bytes of a head file, and the head in such bytes."""

from __future__ import annotations

from pathlib import Path

from headkit.adapters.errors import HeadFormatError
from headkit.adapters.file_kinds import HEAD, explain_wrong_kind
from headkit.adapters.files import check_readable, reason_of, scratch_folder
from headkit.adapters.heads.head import Head


def read_head_file(path: str | Path) -> bytes:
    """Return the bytes of a file, which may be a head file.

    Raises:
        HeadFormatError: The file cannot be read, or is of another kind.
    """
    check_readable(path, "head", HeadFormatError)
    mistake = explain_wrong_kind(path, HEAD)
    if mistake is not None:
        raise HeadFormatError(f"cannot read head {path}: {mistake}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise HeadFormatError(f"cannot read head {path}: {reason_of(error)}") from error


def parse_head(content: bytes, what: str | Path) -> Head:
    """Return the head in the bytes of a head file; errors call the file ``what``.

    Raises:
        HeadFormatError: See ``Head.load``.
        OutputError: There is no space for a temporary file.
    """
    with scratch_folder() as folder:
        path = folder / "head.safetensors"
        path.write_bytes(content)
        try:
            return Head.load(path)
        except HeadFormatError as error:
            raise HeadFormatError(str(error).replace(str(path), str(what))) from error
