"""Change the graph of an ONNX file without decoding its weights: their bytes are copied.

An ONNX file is protobuf: ``ModelProto`` has the graph as field 7, and ``GraphProto`` has one field
5 per initializer (onnx/onnx.proto; wire format: protobuf.dev/programming-guides/encoding). Fields
may have any order, so a changed graph followed by the old bytes of its weights is a valid file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import onnx

_GRAPH, _INITIALIZER = 7, 5
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_KEY, _VALUE = 1, 2
_LENGTH_DELIMITED = 2
SelectDecoded = Callable[[onnx.ModelProto], Callable[[str], bool]]
"""Takes the model without its graph; returns a test of the names of initializers to decode."""


class _Field(NamedTuple):
    number: int
    start: int
    """Position of the field's tag."""
    content: int
    """Position of the field's value."""
    end: int


class _Tensor(NamedTuple):
    name: str
    external: bool
    locations: frozenset[str]


class OnnxEdit:
    """An open ONNX file whose graph and selected initializers are decoded, but not its weights.

    The file stays open until ``close``, or until the ``with`` block ends.

    Attributes:
        model: The model without the undecoded weights.
        names: Names of the undecoded weights.
        external: True if some weight, decoded or not, is in another file.
        locations: Those files, as the weights name them.
    """

    model: onnx.ModelProto
    names: frozenset[str]
    external: bool
    locations: frozenset[str]

    def __init__(self, path: Path, select_decoded: SelectDecoded) -> None:
        """Open ``path``.

        Args:
            path: Path of the file.
            select_decoded: Chooses the initializers to decode, see ``SelectDecoded``. Errors that
                it raises pass through.

        Raises:
            ValueError: The file is not an ONNX file, or is damaged.
            OSError: The file cannot be read.
        """
        self._file = path.open("rb")
        try:
            if not os.fstat(self._file.fileno()).st_size:
                raise ValueError("the file is empty")
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._read(select_decoded)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; ``model`` stays usable, but ``write`` no longer works."""
        if hasattr(self, "_map"):
            self._map.close()
        self._file.close()

    def write(self, path: Path) -> None:
        """Write the current model with the undecoded weights.

        Raises:
            OSError: ``path`` cannot be written.
            ValueError: The file is closed.
        """
        inner = self.model.graph.SerializeToString(deterministic=True)
        outer = onnx.ModelProto()
        outer.CopyFrom(self.model)
        outer.ClearField("graph")
        size = len(inner) + sum(field.end - field.start for field in self._weights)
        if self._file.closed:
            raise ValueError("the ONNX file is already closed: call write before close")
        with path.open("wb") as file:
            file.write(outer.SerializeToString(deterministic=True))
            file.write(_header(_GRAPH, size) + inner)
            file.flush()
            for start, end in _runs(self._weights):
                self._copy(start, end, file)
            file.flush()
            os.fsync(file.fileno())

    def _copy(self, start: int, end: int, file: BinaryIO) -> None:
        """Append bytes of the open file to another, by the kernel where possible: twice as fast."""
        try:
            while start < end:
                moved = os.copy_file_range(
                    self._file.fileno(), file.fileno(), end - start, offset_src=start
                )
                if not moved:
                    raise OSError("the file became shorter")
                start += moved
        except (AttributeError, OSError):  # this system or file system does not support it
            os.lseek(file.fileno(), 0, os.SEEK_END)
            with memoryview(self._map) as view, view[start:end] as piece:
                file.write(piece)
                file.flush()

    def _read(self, select_decoded: SelectDecoded) -> None:
        fields = list(_fields(self._map, 0, len(self._map)))
        graphs = [field for field in fields if field.number == _GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"the file holds {len(graphs)} graphs, expected 1")
        outer = self._join([field for field in fields if field.number != _GRAPH])
        is_decoded = select_decoded(onnx.load_from_string(outer))
        parts = list(_fields(self._map, graphs[0].content, graphs[0].end))
        tensors = {part: _tensor(self._map, part) for part in parts if part.number == _INITIALIZER}
        self._weights = [part for part, tensor in tensors.items() if not is_decoded(tensor.name)]
        undecoded = set(self._weights)
        inner = self._join([part for part in parts if part not in undecoded])
        self.model = onnx.load_from_string(outer + _header(_GRAPH, len(inner)) + inner)
        self.names = frozenset(tensors[part].name for part in self._weights)
        self.external = any(tensor.external for tensor in tensors.values())
        self.locations = frozenset().union(*(tensor.locations for tensor in tensors.values()))

    def _join(self, fields: Sequence[_Field]) -> bytes:
        return b"".join(self._map[start:end] for start, end in _runs(fields))


def external_locations(path: Path) -> frozenset[str]:
    """Return the other files that hold weights of an ONNX file, as it names them.

    Raises:
        ValueError: The file is not an ONNX file, or is damaged.
        OSError: The file cannot be read.
    """
    with OnnxEdit(path, lambda _outer: lambda _name: False) as edit:
        return edit.locations


def _tensor(data: mmap.mmap, field: _Field) -> _Tensor:
    """Read name and location of a ``TensorProto`` without its numbers."""
    name, external, locations = "", False, set()
    for part in _fields(data, field.content, field.end):
        if part.number == _NAME:
            name = data[part.content : part.end].decode()
        elif part.number == _EXTERNAL_DATA:
            external = True
            entry = {
                field.number: data[field.content : field.end].decode()
                for field in _fields(data, part.content, part.end)
            }
            if entry.get(_KEY) == "location":
                locations.add(entry.get(_VALUE, ""))
        elif part.number == _DATA_LOCATION:
            place, _ = _varint(data, part.content, part.end)
            external = external or place == onnx.TensorProto.EXTERNAL
    return _Tensor(name, external, frozenset(locations))


def _runs(fields: Sequence[_Field]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each run of adjacent fields."""
    start = end = -1
    for field in fields:
        if field.start != end:
            if end > start:
                yield start, end
            start = field.start
        end = field.end
    if end > start:
        yield start, end


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    at = start
    while at < end:
        tag, content = _varint(data, at, end)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, content = _varint(data, content, end)
            stop = content + length
        elif kind == 0:
            stop = _varint(data, content, end)[1]
        elif kind in (1, 5):
            stop = content + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"the file is damaged at byte {at}")
        if stop > end:
            raise ValueError(f"the file is cut short: {stop - end} bytes are missing")
        yield _Field(tag >> 3, at, content, stop)
        at = stop


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"the file is damaged at byte {at}")


def _header(number: int, length: int) -> bytes:
    """Return tag and length of a length-delimited field."""
    out = bytearray([number << 3 | _LENGTH_DELIMITED])
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
