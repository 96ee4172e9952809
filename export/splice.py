"""Change the graph of an ONNX file without decoding its weights: they are copied as they lie there.

An ONNX file is protobuf: ``ModelProto`` with the graph as field 7, ``GraphProto`` with one field 5
per initializer (onnx/onnx.proto; wire format: protobuf.dev/programming-guides/encoding). Fields may
come in any order, so a changed graph followed by the old bytes of its weights is a valid file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import onnx
from onnx.external_data_helper import uses_external_data

_GRAPH, _INITIALIZER, _NAME = 7, 5, 8
_LENGTH_DELIMITED = 2
Take = Callable[[onnx.ModelProto], Callable[[str], bool]]


class _Field(NamedTuple):
    number: int
    start: int
    """Of the field, its tag included."""
    content: int
    end: int


class Spliced:
    """An ONNX file, of which only the graph and the initializers that are asked for are decoded.

    Attributes:
        model: without the weights that stay as they are.
    """

    def __init__(self, path: Path, wanted: Take) -> None:
        """Open ``path``.

        Args:
            path: of the file.
            wanted: given the model without its graph, tells by name which initializers to decode.

        Raises:
            ValueError: the file is no protobuf of this kind; or what ``wanted`` raises.
        """
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("the file is empty")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        fields = list(_fields(self._map, 0, len(self._map)))
        graphs = [field for field in fields if field.number == _GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"the file holds {len(graphs)} graphs, expected 1")
        outer = self._join([field for field in fields if field.number != _GRAPH])
        decode = wanted(onnx.load_from_string(outer))
        self._weights: list[_Field] = []
        kept: list[_Field] = []
        for field in _fields(self._map, graphs[0].content, graphs[0].end):
            stays = field.number == _INITIALIZER and not decode(self._name(field))
            (self._weights if stays else kept).append(field)
        inner = self._join(kept)
        self.model = onnx.load_from_string(outer + _header(_GRAPH, len(inner)) + inner)
        self.external = any(map(uses_external_data, self.model.graph.initializer))

    def write(self, path: Path) -> None:
        """Write the model as it is now, with the weights that stayed."""
        inner = self.model.graph.SerializeToString(deterministic=True)
        outer = onnx.ModelProto()
        outer.CopyFrom(self.model)
        outer.ClearField("graph")
        size = len(inner) + sum(field.end - field.start for field in self._weights)
        with path.open("wb") as file:
            file.write(outer.SerializeToString(deterministic=True))
            file.write(_header(_GRAPH, size) + inner)
            view = memoryview(self._map)
            for start, end in _runs(self._weights):
                file.write(view[start:end])
            view.release()
            file.flush()
            os.fsync(file.fileno())

    def _join(self, fields: Sequence[_Field]) -> bytes:
        return b"".join(self._map[start:end] for start, end in _runs(fields))

    def _name(self, tensor: _Field) -> str:
        for field in _fields(self._map, tensor.content, tensor.end):
            if field.number == _NAME:
                return self._map[field.content : field.end].decode()
        return ""


def _runs(fields: Sequence[_Field]) -> Iterator[tuple[int, int]]:
    """Neighbours as one piece."""
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
    """Tag and length of a length-delimited field."""
    out = bytearray([number << 3 | _LENGTH_DELIMITED])
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out)
