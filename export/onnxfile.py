"""Read and write ONNX files, whole or not at all; above 2 GiB the weights lie beside them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

from ..adapters.errors import ExportError, OutputError, first_line
from ..adapters.files import atomic_path, check_writable, sync_folder
from .metadata import PREFIX, TEMPERATURE, ModelInfo
from .splice import Spliced

MAX_BYTES = onnx.checker.MAXIMUM_PROTOBUF - 2**24
"""Weights above this lie in a file of their own: protobuf ends at 2 GiB, the graph takes some."""


@dataclass(frozen=True)
class Opened:
    """An exported model that is about to change.

    Attributes:
        model: without weights that stay as they are, where those are still in the file.
        info: what the file says of itself.
    """

    model: onnx.ModelProto
    info: ModelInfo
    _spliced: Spliced | None

    def write(self, path: str | Path) -> None:
        """Write the model as it is now, whole or not at all.

        Raises:
            OutputError: ``path`` cannot be written; what lay there is untouched.
        """
        if self._spliced is None:
            write(self.model, path)
            return
        with atomic_path(path) as beside:
            self._spliced.write(beside)


def opened(path: str | Path) -> Opened:
    """Open an exported model to change its heads; the weights of its backbone are not decoded.

    Raises:
        ExportError: the file is missing, damaged, lacks its external data, or was not exported by
            headkit.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"cannot read model {path}: no such file")
    described: list[ModelInfo] = []

    def wanted(outer: onnx.ModelProto) -> Callable[[str], bool]:
        info = ModelInfo.from_props({p.key: p.value for p in outer.metadata_props}, str(path))
        described.append(info)
        own = {name for head in info.heads for name in head.tensors} | {TEMPERATURE}
        return lambda name: name.startswith(PREFIX) or name in own

    try:
        spliced = Spliced(path, wanted)
        if not spliced.external:
            return Opened(spliced.model, described[0], spliced)
        missing = _missing(onnx.load(path, load_external_data=False), path.parent)
        if missing:
            raise ExportError(
                f"cannot read model {path}: its external data {', '.join(missing)} is not beside "
                "it; keep both files in one folder"
            )
        return Opened(onnx.load(path), described[0], None)
    except ExportError:
        raise
    except Exception as error:  # protobuf's DecodeError has no root but Exception
        raise ExportError(f"cannot read model {path}: {first_line(error)}") from error


def missing_data(path: Path) -> list[str]:
    """Return the names of external data files that a model needs and that are not beside it."""
    try:
        return _missing(onnx.load(path, load_external_data=False), path.parent)
    except Exception:  # whatever is wrong with the file itself is told by who opens it
        return []


@contextmanager
def scratch(model: onnx.ModelProto, near: Path) -> Iterator[Path]:
    """Write ``model`` into a folder of its own beside ``near``, gone when the block ends.

    Raises:
        OutputError: it cannot be written there.
    """
    folder = near.with_name(f".{near.name}.{secrets.token_hex(6)}")
    try:
        try:
            folder.mkdir()
            _write(model, folder / near.name)
        except OSError as error:
            raise OutputError(f"cannot write {near}: {error.strerror or error}") from error
        yield folder / near.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(model: onnx.ModelProto, path: str | Path) -> None:
    """Write ``model`` whole or not at all; what lay at ``path`` stays until then.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    path = check_writable(path)
    with scratch(model, path) as made:
        # Data first: a model must never lie there without them.
        for file in sorted(made.parent.iterdir(), key=lambda file: file == made):
            file.replace(path.with_name(file.name))
        sync_folder(path.parent)


def num_bytes(path: Path) -> int:
    """Return the size of a model with its external data."""
    data = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (data.stat().st_size if data.is_file() else 0)


def _write(model: onnx.ModelProto, path: Path) -> None:
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights < MAX_BYTES:
        with path.open("wb") as file:
            file.write(model.SerializeToString(deterministic=True))
            file.flush()
            os.fsync(file.fileno())
        return
    onnx.save_model(
        model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024
    )
    onnx.load_external_data_for_model(model, str(path.parent))  # saving took them out of the model


def _missing(model: onnx.ModelProto, folder: Path) -> list[str]:
    """Names only: a location that leads out of the folder is refused by onnx itself."""
    locations = {
        entry.value
        for tensor in model.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sorted(name for name in locations if not (folder / name).is_file())
