"""Read and write ONNX files, whole or not at all; above 2 GiB the weights lie beside them."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import onnx

from headkit.adapters.errors import ExportError, OutputError, first_line
from headkit.adapters.files import atomic_path, check_writable, make_folder_of, move, sync_folder

from .metadata import PREFIX, TEMPERATURE, ModelInfo
from .protobuf_splice import Spliced, external_locations

MAX_BYTES = onnx.checker.MAXIMUM_PROTOBUF - 2**24
"""Weights above this lie in a file of their own: protobuf ends at 2 GiB, the graph takes some."""


@dataclass(frozen=True)
class Opened:
    """An exported model that is about to change. The file stays open until the block ends.

    Attributes:
        model: without weights that stay as they are, where those are still in the file.
        info: what the file says of itself.
    """

    model: onnx.ModelProto
    info: ModelInfo
    _spliced: Spliced | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._spliced is not None:
            self._spliced.close()

    def value_names(self) -> set[str]:
        """Return the names of all values in the graph as it is now, weights in the file too."""
        graph = self.model.graph
        values = [*graph.input, *graph.initializer]
        names = {value.name for value in values} | set(self._spliced.names if self._spliced else ())
        return names | {name for node in graph.node for name in node.output}

    def write(self, path: str | Path) -> None:
        """Write the model as it is now, whole or not at all. This can be done once.

        Raises:
            OutputError: ``path`` cannot be written; what lay there is untouched.
        """
        if self._spliced is None:
            write(self.model, path)
            return
        path = check_writable(path)
        with _replacing(path), atomic_path(path) as beside:
            self._spliced.write(beside)
            self._spliced.close()  # Windows replaces no file that is open


def opened(path: str | Path) -> Opened:
    """Open an exported model to change its heads; the weights of its backbone are not decoded.

    Returns:
        The model, for a ``with`` block.

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
        own = own_names(info)
        return lambda name: name.startswith(PREFIX) or name in own

    try:
        spliced = Spliced(path, wanted)
        if not spliced.external:
            return Opened(spliced.model, described[0], spliced)
        spliced.close()
        missing = _missing(spliced.locations, path.parent)
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


def own_names(info: ModelInfo) -> set[str]:
    """Return the names that the tensors of an only head have in the graph, without a prefix."""
    return {name for head in info.heads for name in head.tensors} | {TEMPERATURE}


def missing_data(path: Path) -> list[str]:
    """Return the names of external data files that a model needs and that are not beside it."""
    try:
        return _missing(_locations(path), path.parent)
    except ExportError:  # whatever is wrong with the file itself is told by who opens it
        return []


@contextmanager
def scratch(model: onnx.ModelProto, near: Path) -> Iterator[Path]:
    """Write ``model`` into a folder of its own beside ``near``, gone when the block ends.

    Raises:
        OutputError: it cannot be written there.
    """
    folder = near.with_name(f".{near.name}.{secrets.token_hex(6)}")
    try:
        make_folder_of(near)
        with _translate_errors(near):
            folder.mkdir()
            _write(model, folder / near.name)
        yield folder / near.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(model: onnx.ModelProto, path: str | Path) -> None:
    """Write ``model`` whole or not at all; what lay at ``path`` stays until then.

    External data get a name of their own with every write, ``NAME.onnx.8HEXDIGITS.data``: the old
    model keeps its data until the new one has replaced it. Then the old data go.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    path = check_writable(path)
    with scratch(model, path) as made, _replacing(path):
        _move(made, path)


def num_bytes(path: Path) -> int:
    """Return the size of a model with the external data that it names.

    Raises:
        ExportError: the file is missing or damaged.
    """
    data = _inside(path.parent, _locations(path))
    return sum(file.stat().st_size for file in (path, *data))


def _write(model: onnx.ModelProto, path: Path) -> None:
    """Write into a folder where nothing else lies, and have it on the disk."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights < MAX_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        data = f"{path.name}.{secrets.token_hex(4)}.data"
        onnx.save_model(model, path, save_as_external_data=True, location=data, size_threshold=1024)
        # Saving took the weights out of the model.
        onnx.load_external_data_for_model(model, str(path.parent))
    for made in path.parent.iterdir():
        with made.open("rb+") as file:
            os.fsync(file.fileno())


def _move(made: Path, path: Path) -> None:
    """Move a model and its data. Data first: a model must never lie there without them."""
    data = [file for file in made.parent.iterdir() if file != made]
    try:
        for file in data:
            move(file, path.with_name(file.name))
        sync_folder(path.parent)
        move(made, path)
    except OSError:
        for file in data:
            path.with_name(file.name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def _replacing(path: Path) -> Iterator[None]:
    """Remove the external data that the model at ``path`` no longer has when the block ends.

    Only what carries its name: other data may belong to several models.

    Raises:
        OutputError: the block cannot write.
    """
    before = _data_of(path)
    with _translate_errors(path):
        yield
    for file in before - _data_of(path):
        if file.name.startswith(f"{path.name}.") and file.name.endswith(".data"):
            try:
                file.unlink()
            except OSError:  # such as on Windows, where a session has it open
                continue


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Tell what the system says as headkit's error.

    Raises:
        OutputError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _data_of(path: Path) -> set[Path]:
    try:
        return _inside(path.parent, _locations(path))
    except ExportError:  # what lies there is no model
        return set()


def _locations(path: Path) -> frozenset[str]:
    try:
        return external_locations(path)
    except Exception as error:  # protobuf's DecodeError has no root but Exception
        raise ExportError(f"cannot read model {path}: {first_line(error)}") from error


def _inside(folder: Path, locations: Iterable[str]) -> set[Path]:
    """Return those files that lie in ``folder`` and do not lead out of it."""
    files = {Path(os.path.normpath(folder / name)) for name in locations}
    here = Path(os.path.normpath(folder))
    return {file for file in files if file.is_relative_to(here) and file.is_file()}


def _missing(locations: Iterable[str], folder: Path) -> list[str]:
    """Names only: a location that leads out of the folder is refused by onnx itself."""
    return sorted(name for name in locations if not (folder / name).is_file())
