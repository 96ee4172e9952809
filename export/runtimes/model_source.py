"""Where an exported model comes from: a file, or bytes in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from headkit.adapters.errors import ExportError
from headkit.adapters.file_kinds import HEAD, MODEL, detect_content_kind, explain_wrong_kind
from headkit.adapters.files import check_readable, reason_of, why_missing
from headkit.export.graph.wire_format import external_locations, missing_locations

ModelLike = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


@dataclass(frozen=True)
class ModelSource:
    """A model to open; it can be opened again, in another process too.

    Attributes:
        name: What messages call the model: its path, or where it is.
        path: Absolute path of the file; None if the model is in memory.
        content: The model in memory; empty if it is a file.
    """

    name: str
    path: Path | None = None
    content: bytes = b""

    @property
    def noun(self) -> str:
        """The name after ``cannot read``."""
        return self.name if self.path is None else f"model {self.name}"

    @classmethod
    def of(cls, model: ModelLike) -> ModelSource:
        """Return the source for a path, bytes or an open binary file, which is read to its end.

        Raises:
            ExportError: There is no such file, ``model`` is something else, or a model in memory
                keeps weights in another file.
        """
        if isinstance(model, str | os.PathLike):
            path = check_readable(os.fspath(model), "model", ExportError)
            return cls(str(path), path.absolute())
        name = "the model in memory"
        if isinstance(model, bytes | bytearray | memoryview):
            content: object = bytes(model)
        elif hasattr(model, "read"):
            name = f"the model in the open file {getattr(model, 'name', '')}".rstrip()
            content = _read(model, name)
        else:
            raise ExportError(
                f"the model is {type(model).__name__}, expected a path, bytes or a binary file"
            )
        if not isinstance(content, bytes):
            raise ExportError(
                f"{name} returns text, expected bytes: open the file in the mode 'rb'"
            )
        source = cls(name, content=content)
        source._check_content()
        return source

    def read(self) -> bytes:
        """Return the content of the model.

        Raises:
            ExportError: The file cannot be read.
        """
        if self.path is None:
            return self.content
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise ExportError(f"cannot read {self.noun}: {reason_of(error)}") from error

    def explain(self, reason: str) -> str:
        """Return why a model cannot be opened: ``reason`` unless a better one is found.

        ONNX Runtime names neither a head file nor missing external data.
        """
        if self.path is None:
            return reason
        if why_missing(self.path):
            return why_missing(self.path)
        mistake = explain_wrong_kind(self.path, MODEL)
        if mistake is not None:
            return f"{mistake}; `headkit export` makes a model from a head"
        missing = missing_locations(self.path)
        return f"its external data {', '.join(missing)} is missing" if missing else reason

    def _check_content(self) -> None:
        if not self.content:
            raise ExportError(f"cannot read {self.name}: it is empty")
        kind = detect_content_kind(self.content)
        if kind is not None:
            advice = "; `headkit export` makes a model from a head" if kind is HEAD else ""
            raise ExportError(
                f"cannot read {self.name}: it is {kind.noun}, expected {MODEL.noun}{advice}"
            )
        try:
            locations = external_locations(self.content)
        except ValueError:  # ONNX Runtime reports damaged bytes
            return
        if locations:
            raise ExportError(
                f"cannot read {self.name}: its weights are in the file "
                f"{', '.join(sorted(locations))}, which cannot be found from bytes: pass the path "
                "of the model"
            )


def _read(file: BinaryIO, name: str) -> object:
    try:
        return file.read()
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise ExportError(f"cannot read {name}: {error}") from error
