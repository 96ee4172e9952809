"""Read and extend the bytes of an ONNX file without the package onnx, which deployments lack.

An ONNX file is protobuf: ``ModelProto`` has the graph as field 7, and ``GraphProto`` has one field
5 per initializer and one field 12 per output (onnx/onnx.proto; wire format:
protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from headkit.adapters.files import is_file

Buffer = bytes | mmap.mmap

GRAPH, INITIALIZER = 7, 5
_OUTPUT = 12
_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL = 1
"""Value of ``TensorProto.DataLocation`` for a tensor in another file."""
_FLOAT = 1
"""Value of ``TensorProto.DataType`` for float32."""
_LENGTH_DELIMITED = 2


class Field(NamedTuple):
    """Place of a field in the bytes of a message."""

    number: int
    start: int
    """Position of the field's tag."""
    content: int
    """Position of the field's value."""
    end: int


class Tensor(NamedTuple):
    """Name of an initializer, and the other files that hold its numbers."""

    name: str
    external: bool
    locations: frozenset[str]


class External(NamedTuple):
    """Where another file has the numbers of an initializer."""

    location: str = ""
    offset: int = 0
    """First byte."""
    length: int | None = None
    """Number of bytes; None for all up to the end of the file."""


def iterate_fields(data: Buffer, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two positions.

    Raises:
        ValueError: The bytes are not a message, or are cut short.
    """
    at = start
    while at < end:
        tag, content = read_varint(data, at, end)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, content = read_varint(data, content, end)
            stop = content + length
        elif kind == 0:
            stop = read_varint(data, content, end)[1]
        elif kind in (1, 5):
            stop = content + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"the file is damaged at byte {at}")
        if stop > end:
            raise ValueError(f"the file is cut short: {stop - end} bytes are missing")
        yield Field(tag >> 3, at, content, stop)
        at = stop


def read_text(data: Buffer, field: Field, number: int) -> str:
    """Return the text that a message has as its field ``number``; empty without that field.

    Raises:
        ValueError: The bytes are damaged.
    """
    text = ""
    for part in iterate_fields(data, field.content, field.end):
        if part.number == number:
            text = data[part.content : part.end].decode()
    return text


def read_external(data: Buffer, field: Field, known: External | None) -> External:
    """Add one entry of ``TensorProto.external_data`` to those that are known.

    Raises:
        ValueError: The bytes are damaged.
    """
    location, offset, length = known or External()
    key, value = read_text(data, field, _KEY), read_text(data, field, _VALUE)
    if key == "location":
        location = value
    elif key == "offset":
        offset = int(value)
    elif key == "length":
        length = int(value)
    return External(location, offset, length)


def read_tensor(data: Buffer, field: Field) -> Tensor:
    """Read name and location of a ``TensorProto`` without its numbers.

    Raises:
        ValueError: The bytes are damaged.
    """
    name, external, locations = "", False, set()
    for part in iterate_fields(data, field.content, field.end):
        if part.number == _NAME:
            name = data[part.content : part.end].decode()
        elif part.number == _EXTERNAL_DATA:
            external = True
            if read_text(data, part, _KEY) == "location":
                locations.add(read_text(data, part, _VALUE))
        elif part.number == _DATA_LOCATION:
            place, _ = read_varint(data, part.content, part.end)
            external = external or place == _EXTERNAL
    return Tensor(name, external, frozenset(locations))


def external_locations(model: Path | bytes) -> frozenset[str]:
    """Return the other files that hold weights of an ONNX model, as it names them.

    Raises:
        ValueError: The model is not ONNX, or is damaged.
        OSError: The file cannot be read.
    """
    if isinstance(model, bytes):
        return _locations(model)
    if not model.stat().st_size:
        raise ValueError("the file is empty")
    with (
        model.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return _locations(content)


def missing_locations(path: Path) -> list[str]:
    """Return the names of the external data of an ONNX file that are missing from its folder.

    The list is empty for a damaged file.
    """
    try:
        locations = external_locations(path)
    except (OSError, ValueError):
        return []
    return sorted(name for name in locations if not is_file(path.parent / name))


def with_outputs(model: bytes, outputs: Mapping[str, Sequence[int | str]]) -> bytes:
    """Return a model that also outputs float32 values that its graph computes.

    Args:
        model: The content of an ONNX file.
        outputs: Shapes of the values, by name. A text is the name of a dynamic dimension.

    Returns:
        The content and a second graph that has only outputs. A reader of protobuf merges two
        occurrences of one message: it appends the outputs to those of the first.
    """
    declared = (_value_info(name, shape) for name, shape in outputs.items())
    graph = b"".join(_delimited(_OUTPUT, value) for value in declared)
    return model + _delimited(GRAPH, graph)


def header(number: int, length: int) -> bytes:
    """Return tag and length of a length-delimited field."""
    return _encode(number << 3 | _LENGTH_DELIMITED) + _encode(length)


def _locations(data: Buffer) -> frozenset[str]:
    return frozenset().union(
        *(
            read_tensor(data, part).locations
            for graph in iterate_fields(data, 0, len(data))
            if graph.number == GRAPH
            for part in iterate_fields(data, graph.content, graph.end)
            if part.number == INITIALIZER
        )
    )


def _value_info(name: str, shape: Sequence[int | str]) -> bytes:
    """Return a ``ValueInfoProto`` (name 1, type 2) of a float32 tensor."""
    # TensorShapeProto.Dimension: value 1 or parameter 2. TypeProto.Tensor: type 1, shape 2.
    dims = (
        _encode(1 << 3) + _encode(dim) if isinstance(dim, int) else _delimited(2, dim.encode())
        for dim in shape
    )
    shape_proto = b"".join(_delimited(1, dim) for dim in dims)
    tensor = _encode(1 << 3) + _encode(_FLOAT) + _delimited(2, shape_proto)
    return _delimited(1, name.encode()) + _delimited(2, _delimited(1, tensor))


def _delimited(number: int, content: bytes) -> bytes:
    return header(number, len(content)) + content


def _encode(value: int) -> bytes:
    """Return an unsigned integer as a varint."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """Read a varint; return its value and the position after it."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"the file is damaged at byte {at}")
