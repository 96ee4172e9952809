"""Read and write ONNX files atomically; above 2 GiB the weights are in a separate file."""

from __future__ import annotations

import glob
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import onnx

from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.files import (
    atomic_path,
    check_readable,
    check_writable,
    is_file,
    make_parent_folder,
    move,
    sync_folder,
    writing,
)
from headkit.adapters.temporary import hold, remove_if_abandoned, temporary_folder

from .metadata import ModelInfo
from .protobuf_edit import OnnxEdit
from .wire_format import external_locations

_DATA = re.compile(r"\.[0-9a-f]{8}\.data")
"""The end of the name of external data."""
MAX_BYTES = onnx.checker.MAXIMUM_PROTOBUF - 2**24
"""Larger weights go to a separate file: protobuf allows 2 GiB, of which the graph needs some."""


@dataclass(frozen=True)
class OpenModel:
    """An exported model that is open for changes until its ``with`` block ends.

    Attributes:
        model: The model. Unless its weights are in a separate file, those of the backbone are left
            out; ``write`` copies them.
        info: Description of the model.
    """

    model: onnx.ModelProto
    info: ModelInfo
    _edit: OnnxEdit | None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._edit is not None:
            self._edit.close()

    def value_names(self) -> set[str]:
        """Return the names of all values in the current graph, also of weights left in the file."""
        graph = self.model.graph
        values = [*graph.input, *graph.initializer]
        names = {value.name for value in values} | set(self._edit.names if self._edit else ())
        return names | {name for node in graph.node for name in node.output}

    def write(self, path: str | Path) -> None:
        """Write the current model atomically. Call it once.

        Raises:
            OutputError: ``path`` cannot be written; a file that was there is unchanged.
        """
        if self._edit is None:
            write(self.model, path)
            return
        path = check_writable(path)
        with _replacing(path), atomic_path(path) as temporary:
            self._edit.write(temporary)
            self._edit.close()  # Windows cannot replace an open file


def open_model(path: str | Path) -> OpenModel:
    """Open an exported model to change its heads; the weights of its backbone are not decoded.

    Returns:
        The open model, for a ``with`` block.

    Raises:
        ExportError: The file is missing, is damaged, lacks its external data, or headkit did not
            export it.
    """
    path = check_readable(path, "model", ExportError)
    infos: list[ModelInfo] = []

    def select_decoded(outer: onnx.ModelProto) -> Callable[[str], bool]:
        info = ModelInfo.from_props({p.key: p.value for p in outer.metadata_props}, str(path))
        infos.append(info)
        return info.is_of_head

    try:
        edit = OnnxEdit(path, select_decoded)
        if not edit.external:
            return OpenModel(edit.model, infos[0], edit)
        edit.close()
        missing = _missing(edit.locations, path.parent)
        if missing:
            raise ExportError(
                f"cannot read model {path}: its external data {', '.join(missing)} is missing; "
                "keep it in the same folder as the model"
            )
        return OpenModel(onnx.load(path), infos[0], None)
    except ExportError:
        raise
    except Exception as error:  # protobuf's DecodeError has no root but Exception
        raise ExportError(f"cannot read model {path}: {first_line(error)}") from error


@contextmanager
def temporary_model(model: onnx.ModelProto, near: Path) -> Iterator[Path]:
    """Write a model into a temporary folder next to ``near`` until the block ends.

    Yields:
        Path of the model.

    Raises:
        OutputError: The model cannot be written there.
    """
    make_parent_folder(near)
    with writing(near), temporary_folder(near) as folder:
        _write(model, folder / near.name)
        yield folder / near.name


def write(model: onnx.ModelProto, path: str | Path) -> None:
    """Write a model atomically: a model at ``path`` stays until the new one replaces it.

    External data get a new name with every write, ``NAME.onnx.8HEXDIGITS.data``, so that the old
    model keeps its data until the new model has replaced it. Then the old data are deleted.

    Raises:
        OutputError: ``path`` cannot be written.
    """
    path = check_writable(path)
    with temporary_model(model, path) as temporary, _replacing(path):
        _move(temporary, path)


def num_bytes(path: Path) -> int:
    """Return the size of a model in bytes, its external data included.

    Raises:
        ExportError: The file is missing or damaged.
    """
    data = _inside(path.parent, _locations(path))
    return sum(file.stat().st_size for file in (path, *data))


def _write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model into an empty folder and sync it to disk."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights < MAX_BYTES:
        path.write_bytes(model.SerializeToString(deterministic=True))
    else:
        data = f"{path.name}.{secrets.token_hex(4)}.data"
        onnx.save_model(model, path, save_as_external_data=True, location=data, size_threshold=1024)
        # save_model removed the weights from the model in memory.
        onnx.load_external_data_for_model(model, str(path.parent))
    for written in path.parent.iterdir():
        with written.open("rb+") as file:
            os.fsync(file.fileno())


def _move(model: Path, path: Path) -> None:
    """Move a model and its data; data first, because a model must never be there without them."""
    data = [file for file in model.parent.iterdir() if file != model]
    with ExitStack() as stack:
        for file in data:
            stack.enter_context(hold(file))  # see ``_replacing``
        try:
            for file in data:
                move(file, path.with_name(file.name))
            sync_folder(path.parent)
            move(model, path)
        except OSError:
            for file in data:
                path.with_name(file.name).unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


@contextmanager
def _replacing(path: Path) -> Iterator[None]:
    """Delete external data that the model at ``path`` no longer has when the block ends.

    These are the data of the model before, and those that a killed process moved there without its
    model. Only files that carry the model's name are deleted: others may belong to several models.

    Raises:
        OutputError: The block raised an OSError.
    """
    before = _data_of(path)
    with writing(path):
        yield
    after = _data_of(path)
    for file in path.parent.glob(f"{glob.escape(path.name)}.*.data"):
        if file in before - after:
            with suppress(OSError):  # such as on Windows if a session has the file open
                file.unlink()
        elif file not in after and _DATA.fullmatch(file.name.removeprefix(path.name)):
            remove_if_abandoned(file)


def _data_of(path: Path) -> set[Path]:
    try:
        return _inside(path.parent, _locations(path))
    except ExportError:  # the file is not an ONNX model
        return set()


def _locations(path: Path) -> frozenset[str]:
    try:
        return external_locations(path)
    except Exception as error:  # protobuf's DecodeError has no root but Exception
        raise ExportError(f"cannot read model {path}: {first_line(error)}") from error


def _inside(folder: Path, locations: Iterable[str]) -> set[Path]:
    """Return the files that exist in ``folder``; locations outside it are ignored."""
    files = {Path(os.path.normpath(folder / name)) for name in locations}
    here = Path(os.path.normpath(folder))
    return {file for file in files if file.is_relative_to(here) and is_file(file)}


def _missing(locations: Iterable[str], folder: Path) -> list[str]:
    """Return the missing locations; onnx itself refuses those outside the folder."""
    return sorted(name for name in locations if not is_file(folder / name))
