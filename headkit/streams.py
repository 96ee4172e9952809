"""Standard output and standard error, whatever they are connected to.

Standard output may be a file on a full disk, or a pipe whose reader has gone. Standard error gets
only progress, logs and messages: if it cannot be written, the work goes on without it.
"""

from __future__ import annotations

import io
import os
import sys
from typing import cast

from headkit.adapters.errors import OutputError
from headkit.adapters.files import reason_of


class _Output(io.TextIOWrapper):
    """Standard output that raises headkit's error if it cannot be written."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise _translate(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise _translate(error) from error


class _Messages(io.TextIOWrapper):
    """Standard error that ignores what cannot be written."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            return


def open_streams() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that handle errors of the system."""
    sys.stdout = _wrap(sys.stdout, _Output)
    sys.stderr = _wrap(sys.stderr, _Messages)


def close_output() -> None:
    """Give up what standard output still holds: it cannot be written.

    Otherwise the interpreter would try again at its end, and report that with a traceback.
    """
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _wrap(stream: object, kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:
    if type(stream) is not io.TextIOWrapper:  # there is none, or a test has replaced it
        return cast("io.TextIOWrapper", stream)
    encoding, buffered = stream.encoding, stream.line_buffering
    # Pipes on Windows may lack a character.
    return kind(stream.detach(), encoding, errors="backslashreplace", line_buffering=buffered)


def _translate(error: OSError) -> Exception:
    if isinstance(error, BrokenPipeError):
        return error  # the reader has seen enough: no message is needed
    return OutputError(f"cannot write to standard output: {reason_of(error)}")
