"""Decode the graph of an ONNX file without the package onnx, and without its weights.

The numbers of the fields are those of onnx/onnx.proto.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headkit.export.graph.wire_format import Buffer, Field, iterate_fields, read_varint

Array = np.ndarray[Any, Any]
MAX_NUMBERS = 4096
"""Tensors of at most as many numbers are decoded: they may be the shapes of others."""
MAX_DIMENSIONS = 16
DTYPES: dict[int, np.dtype[Any]] = {
    number: np.dtype(name)
    for number, name in {
        1: "float32",
        2: "uint8",
        3: "int8",
        4: "uint16",
        5: "int16",
        6: "int32",
        7: "int64",
        9: "bool",
        10: "float16",
        11: "float64",
        12: "uint32",
        13: "uint64",
    }.items()
}
"""NumPy's types by ``TensorProto.DataType``."""
_INT_DATA, _INT64_DATA, _FLOAT_DATA, _DOUBLE_DATA, _UINT64_DATA = 5, 7, 4, 10, 11
_EXTERNAL = 1


@dataclass(frozen=True)
class Tensor:
    """A constant of a graph.

    Attributes:
        name: Its name.
        dtype: Its type.
        dims: Its shape.
        numbers: Its numbers if they are few and in the file, else None.
        location: The other file that holds its numbers, as the model names it; None if there is
            none.
    """

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int, ...]
    numbers: Array | None = None
    location: str | None = None


@dataclass(frozen=True)
class Declared:
    """An input or an output of a graph. Dynamic dimensions are names."""

    name: str
    dtype: np.dtype[Any]
    dims: tuple[int | str, ...]


@dataclass
class Node:
    """A node of a graph; ``where`` is what messages call it."""

    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The operator and its first output, for messages."""
        return f"{self.operator!r:.60} of {self.outputs[0] if self.outputs else ''!r:.60}"


@dataclass
class Graph:
    """The graph of a model, the versions of its operator sets, and its metadata."""

    nodes: list[Node] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    inputs: list[Declared] = field(default_factory=list)
    outputs: list[Declared] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def decode_graph(data: Buffer) -> Graph:
    """Decode the graph of an ONNX file.

    Raises:
        ValueError: The bytes are damaged, or the model has functions, subgraphs, sparse tensors, or
            values that are not tensors.
    """
    graph = Graph()
    for part in iterate_fields(data, 0, len(data)):
        if part.number == 7:
            _read_graph(data, part, graph)
        elif part.number == 8:
            fields = _group(data, part)
            domain = _text(data, fields.get(1))
            version = _integer(data, fields.get(2))
            if domain in graph.opsets and graph.opsets[domain] != version:
                raise ValueError(f"it names two versions of the operator set {domain!r:.60}")
            graph.opsets[domain] = version
        elif part.number == 14:
            fields = _group(data, part)
            graph.metadata[_text(data, fields.get(1))] = _text(data, fields.get(2))
        elif part.number in (20, 25):
            raise ValueError("it has functions or information for training, expected one graph")
    return graph


def _read_graph(data: Buffer, place: Field, graph: Graph) -> None:
    for part in iterate_fields(data, place.content, place.end):
        if part.number == 1:
            graph.nodes.append(_read_node(data, part))
        elif part.number == 5:
            graph.tensors.append(_read_tensor(data, part))
        elif part.number in (11, 12):
            values = graph.inputs if part.number == 11 else graph.outputs
            values.append(_read_declared(data, part))
        elif part.number == 15:
            raise ValueError("it has sparse tensors")


def _read_node(data: Buffer, place: Field) -> Node:
    node = Node()
    for part in iterate_fields(data, place.content, place.end):
        if part.number == 1:
            node.inputs.append(_text(data, part))
        elif part.number == 2:
            node.outputs.append(_text(data, part))
        elif part.number == 4:
            node.operator = _text(data, part)
        elif part.number == 7:
            node.domain = _text(data, part)
        elif part.number == 5:
            name, value = _read_attribute(data, part)
            if name in node.attributes:
                raise ValueError(f"{node.where} has the attribute {name!r:.60} twice")
            node.attributes[name] = value
    return node


def _read_attribute(data: Buffer, place: Field) -> tuple[str, Any]:
    """Read name and value of an ``AttributeProto``; its type says which of its fields counts."""
    name, kind = "", 0
    values: dict[int, Any] = {number: [] for number in (7, 8, 9)}
    for part in iterate_fields(data, place.content, place.end):
        number = part.number
        if number == 1:
            name = _text(data, part)
        elif number == 20:
            kind = _integer(data, part)
        elif number == 2:
            (values[2],) = struct.unpack("<f", data[part.content : part.end])
        elif number == 3:
            values[3] = _integer(data, part)
        elif number == 4:
            values[4] = data[part.content : part.end]
        elif number == 5:
            if 5 in values:
                raise ValueError("an attribute has two tensors")
            values[5] = _read_tensor(data, part)
        elif number == 7:
            values[7] += _floats(data, part)
        elif number == 8:
            values[8] += _integers(data, part)
        elif number == 9:
            values[9].append(data[part.content : part.end])
        elif number not in (13, 21):
            raise ValueError(
                f"the attribute {name!r:.60} is a graph, a sparse tensor or a list of tensors"
            )
    # AttributeProto.AttributeType: float 1, int 2, string 3, tensor 4, floats 6, ints 7, strings 8.
    if kind + 1 not in values:
        raise ValueError(f"the attribute {name!r:.60} has no value of its type")
    return name, values[kind + 1]


def _read_tensor(data: Buffer, place: Field) -> Tensor:
    """Read a ``TensorProto``; its numbers only if they are few."""
    dims: list[int] = []
    name, code, location = "", 0, None
    stored: list[Field] = []
    external = False
    for part in iterate_fields(data, place.content, place.end):
        number = part.number
        if number == 1:
            dims += _integers(data, part)
        elif number == 2:
            code = _integer(data, part)
        elif number == 8:
            name = _text(data, part)
        elif number == 13:
            fields = _group(data, part)
            if _text(data, fields.get(1)) == "location":
                location = _text(data, fields.get(2))
        elif number == 14:
            external = _integer(data, part) == _EXTERNAL
        elif number in (4, 5, 7, 9, 10, 11):
            stored.append(part)
        elif number in (3, 6):
            raise ValueError(f"the tensor {name!r:.60} has segments or texts")
    dtype = _dtype(code)
    if len(dims) > MAX_DIMENSIONS or any(not 0 <= size < 2**40 for size in dims):
        raise ValueError(f"the tensor {name!r:.60} has the shape {dims[:9]}")
    count = math.prod(dims)
    if external or location is not None:
        if location is None or stored:
            raise ValueError(f"the tensor {name!r:.60} has no file, or numbers beside its file")
        return Tensor(name, dtype, tuple(dims), None, location)
    return Tensor(name, dtype, tuple(dims), _numbers(data, stored, dtype, count, dims, name))


def _numbers(
    data: Buffer, stored: list[Field], dtype: np.dtype[Any], count: int, dims: list[int], name: str
) -> Array | None:
    """Return the numbers of a tensor if they are few; check that there are as many as it says."""
    raw = [part for part in stored if part.number == 9]
    if raw:
        if len(stored) > 1 or raw[0].end - raw[0].content != count * dtype.itemsize:
            raise ValueError(f"the tensor {name!r:.60} has other numbers than its shape says")
        if count > MAX_NUMBERS:
            return None
        return np.frombuffer(data[raw[0].content : raw[0].end], dtype).reshape(dims)
    if count > MAX_NUMBERS:
        # Each number takes a byte at least.
        if sum(part.end - part.content for part in stored) < count:
            raise ValueError(f"the tensor {name!r:.60} has fewer numbers than its shape says")
        return None
    values: list[Any] = []
    for part in stored:
        if part.number == _FLOAT_DATA:
            values += _floats(data, part)
        elif part.number == _DOUBLE_DATA:
            content = data[part.content : part.end]
            values += struct.unpack(f"<{len(content) // 8}d", content[: len(content) // 8 * 8])
        elif part.number in (_INT_DATA, _INT64_DATA, _UINT64_DATA):
            values += _integers(data, part)
    if len(values) != count:
        raise ValueError(f"the tensor {name!r:.60} has other numbers than its shape says")
    if dtype == np.float16:  # its bits are stored as integers
        return np.array([value & 0xFFFF for value in values], np.uint16).view(dtype).reshape(dims)
    return np.array(values).astype(dtype).reshape(dims)


def _read_declared(data: Buffer, place: Field) -> Declared:
    """Read a ``ValueInfoProto`` of a tensor."""
    fields = _group(data, place)
    name = _text(data, fields.get(1))
    kind = _group(data, fields[2]) if 2 in fields else {}
    if 1 not in kind or kind.keys() - {1, 6}:
        raise ValueError(f"the value {name!r:.60} is not a tensor")
    tensor = _group(data, kind[1])
    dims: list[int | str] = []
    if 2 in tensor:
        for dim in iterate_fields(data, tensor[2].content, tensor[2].end):
            size = _group(data, dim)
            dims.append(_text(data, size[2]) if 2 in size else _integer(data, size.get(1), -1))
    if len(dims) > MAX_DIMENSIONS:
        raise ValueError(f"the value {name!r:.60} has {len(dims)} dimensions")
    return Declared(name, _dtype(_integer(data, tensor.get(1))), tuple(dims))


def _group(data: Buffer, place: Field) -> Mapping[int, Field]:
    """Return the fields of a message by number; each must occur only once."""
    fields: dict[int, Field] = {}
    for part in iterate_fields(data, place.content, place.end):
        if part.number in fields:
            raise ValueError(f"the file is damaged at byte {part.start}: a field occurs twice")
        fields[part.number] = part
    return fields


def _dtype(code: int) -> np.dtype[Any]:
    if code not in DTYPES:
        raise ValueError(f"a value has the type {code}, expected numbers or truth values")
    return DTYPES[code]


def _text(data: Buffer, place: Field | None) -> str:
    return "" if place is None else data[place.content : place.end].decode()


def _integer(data: Buffer, place: Field | None, default: int = 0) -> int:
    """Read an integer of 64 bits with a sign."""
    if place is None:
        return default
    value = read_varint(data, place.content, place.end)[0] & 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _is_packed(data: Buffer, place: Field) -> bool:
    return data[place.start] & 7 == 2


def _integers(data: Buffer, place: Field) -> list[int]:
    """Read one integer, or many in one field."""
    if not _is_packed(data, place):
        return [_integer(data, place)]
    values, at = [], place.content
    while at < place.end:
        value, at = read_varint(data, at, place.end)
        value &= 2**64 - 1
        values.append(value - 2**64 if value >= 2**63 else value)
    return values


def _floats(data: Buffer, place: Field) -> list[float]:
    content = data[place.content : place.end]
    whole = len(content) // 4 * 4
    return list(struct.unpack(f"<{whole // 4}f", content[:whole]))
