"""Checksums of an exported model: they find weights that were damaged after the export.

The metadata entry ``checksums`` has one of the backbone and one of each head, see docs/onnx.md.
``graft`` copies weights from one model to the next, so it checks them all. No package ``onnx`` is
needed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headkit.adapters.errors import ExportError, first_line
from headkit.adapters.files import is_file

from .wire_format import (
    GRAPH,
    INITIALIZER,
    Buffer,
    External,
    Field,
    iterate_fields,
    read_external,
    read_text,
)

if TYPE_CHECKING:
    import onnx

IsOfHead = Callable[[str], bool]
"""Tells from the name of a node, an input or an initializer whether it belongs to a head."""

CHECKSUMS = "checksums"
"""Name of the metadata entry."""
DESCRIBED = ("kind", "label_names", "num_classes", "pixels", "task", "temperature")
"""What the checksum of a head covers of its description."""
_OPSET_IMPORT, _PROPERTY, _FUNCTION = 8, 14, 25
_PROPERTIES = ("backbone", "classifier", "features", "levels")
"""Entries of the metadata that describe the backbone."""
_NODE, _INPUT = 1, 11
_NAME_OF = {_NODE: 3, _INPUT: 1, INITIALIZER: 8}
"""The field with the name, by the number of the field in ``GraphProto``."""
_RAW_DATA, _DOC_STRING, _EXTERNAL_DATA, _DATA_LOCATION = 9, 12, 13, 14
_CHUNK = 2**20
_THREADS = 4
"""hashlib releases the lock of the interpreter: the weights are hashed on several cores."""


def checksum_of_backbone(model: onnx.ModelProto, is_of_head: IsOfHead) -> str:
    """Return the checksum of all that does not belong to heads, 64 hexadecimal digits.

    It covers the operator sets, functions, nodes, inputs and weights, and the metadata entries that
    describe the backbone. Names of external files and descriptions of shapes make no difference.
    """
    graph = model.graph
    groups: list[tuple[int, Iterable[Any]]] = [
        (_OPSET_IMPORT, model.opset_import),
        (_PROPERTY, [one for one in model.metadata_props if one.key in _PROPERTIES]),
        (_FUNCTION, model.functions),
        (_NODE, graph.node),
        (_INPUT, graph.input),
        (INITIALIZER, graph.initializer),
    ]
    named = [
        (number, getattr(message, "key" if number == _PROPERTY else "name", ""), message)
        for number, messages in groups
        for message in messages
    ]
    ordered = _in_order(named, is_of_head)
    return _hash(partial(_hash_message, number, message) for number, _, message in ordered)


def checksum_of_file(model: Path | bytes, is_of_head: IsOfHead) -> str:
    """Return ``checksum_of_backbone`` of a model in a file, which this does not decode.

    Args:
        model: Path of the file, or its content.
        is_of_head: See ``IsOfHead``.

    Raises:
        ValueError, OSError: The file is damaged, or cannot be read.
    """
    with _opened(model) as data:
        folder = model.parent if isinstance(model, Path) else None
        named = [
            one
            for field in iterate_fields(data, 0, len(data))
            for one in _parts_of_model(data, field)
        ]
        return _hash(
            partial(_hash_part, number, data, place.content, place.end, folder)
            for number, _, place in _in_order(named, is_of_head)
        )


def check_file(
    model: Path | bytes, checksum: str, is_of_head: IsOfHead, name: str, hint: str = ""
) -> str:
    """Check that the backbone in a file is the one that was exported; return its checksum.

    Args:
        model: Path of the file, or its content.
        checksum: What ``checksum_of_backbone`` returned; a model without a checksum passes.
        is_of_head: See ``IsOfHead``.
        name: What messages call the file.
        hint: What else the user can do.

    Raises:
        ExportError: It is another one, or the file is damaged.
    """
    try:
        actual = checksum_of_file(model, is_of_head)
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read {name}: {first_line(error)}") from error
    if checksum and actual != checksum:
        raise ExportError(
            f"{name} was changed after its export: its backbone does not match the checksum in "
            f"its metadata. Get the file again, or export the backbone again{hint}"
        )
    return actual


def is_intact(path: Path) -> bool:
    """Return True if a file has a backbone without heads, and a checksum that matches it.

    A cache exports the backbone again otherwise.
    """
    try:
        checksum = _read_checksum(path)
        return bool(checksum) and checksum == checksum_of_file(path, lambda _: False)
    except (OSError, ValueError, RecursionError):
        return False


def _read_checksum(path: Path) -> object:
    with _opened(path) as data:
        for field in iterate_fields(data, 0, len(data)):
            if field.number == _PROPERTY and read_text(data, field, 1) == CHECKSUMS:
                values = json.loads(read_text(data, field, 2))
                return values.get("backbone") if isinstance(values, dict) else None
    return None


def checksum_of_head(
    description: Mapping[str, Any], tensors: Mapping[str, np.ndarray[Any, Any]]
) -> str:
    """Return the checksum of a head in an exported model, which stores its tensors in float32.

    Args:
        description: The ``head`` entry of the head file; ``DESCRIBED`` and the levels of it count.
        tensors: The head's tensors by name.
    """
    from headkit.adapters.heads.checksum import compute_checksum  # needs ml_dtypes

    described = {key: description.get(key) for key in DESCRIBED}
    if "levels" in description:
        described["levels"] = description["levels"]
    stored = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    return compute_checksum(
        json.dumps(described, sort_keys=True, ensure_ascii=False, separators=(",", ":")),
        {
            name: array if array.dtype.kind == "i" else array.astype(np.float32)
            for name, array in stored.items()
        },
    )


def _in_order(
    named: Iterable[tuple[int, str, Any]], is_of_head: IsOfHead
) -> list[tuple[int, str, Any]]:
    """Return what does not belong to heads: groups by number, some of them by name."""
    own = [one for one in named if one[0] not in _NAME_OF or not is_of_head(one[1])]
    return sorted(own, key=lambda one: (_ORDER[one[0]], one[1] if one[0] in _BY_NAME else ""))


_BY_NAME = (INITIALIZER, _PROPERTY)
_ORDER = {
    number: at
    for at, number in enumerate((_OPSET_IMPORT, _PROPERTY, _FUNCTION, _NODE, _INPUT, INITIALIZER))
}


def _parts_of_model(data: Buffer, field: Field) -> Iterator[tuple[int, str, Field]]:
    """Yield number, name and place of what a field of a model has for the checksum."""
    if field.number in (_OPSET_IMPORT, _FUNCTION):
        yield field.number, "", field
    if field.number == _PROPERTY:
        key = read_text(data, field, 1)
        if key in _PROPERTIES:
            yield field.number, key, field
    if field.number == GRAPH:
        for part in iterate_fields(data, field.content, field.end):
            if part.number in _NAME_OF:
                yield part.number, read_text(data, part, _NAME_OF[part.number]), part


def _hash(parts: Iterable[Callable[[], str]]) -> str:
    """Return the SHA-256 over a line per part, each hashed in a thread."""
    with ThreadPoolExecutor(_THREADS) as threads:
        lines = "".join(threads.map(lambda part: part(), parts))
    return hashlib.sha256(lines.encode()).hexdigest()


def _hash_message(number: int, message: Any) -> str:
    content = message.SerializeToString(deterministic=True)
    return _hash_part(number, content, 0, len(content), None)


def _hash_part(number: int, data: Buffer, start: int, end: int, folder: Path | None) -> str:
    """Return a line with the number of a field and the SHA-256 of its content."""
    if number == INITIALIZER:
        return f"{number}\t{_hash_tensor(data, start, end, folder)}\n"
    return f"{number}\t{hashlib.sha256(data[start:end]).hexdigest()}\n"


def _hash_tensor(data: Buffer, start: int, end: int, folder: Path | None) -> str:
    """Hash a ``TensorProto``: its fields without its numbers, and then the numbers.

    The result is the same whether the numbers are in the file or in another one.
    """
    raw: Field | None = None
    external: External | None = None
    described = []
    for part in iterate_fields(data, start, end):
        if part.number == _RAW_DATA:
            raw = part
        elif part.number == _EXTERNAL_DATA:
            external = read_external(data, part, external)
        elif part.number not in (_DOC_STRING, _DATA_LOCATION):
            described.append(data[part.start : part.end])
    fields = b"".join(described)
    digest = hashlib.sha256(f"{len(fields)}\n".encode() + fields)
    if external is not None:
        for chunk in _read_outside(external, folder):
            digest.update(chunk)
    elif raw is not None:
        with memoryview(data) as view, view[raw.content : raw.end] as piece:
            digest.update(piece)
    return digest.hexdigest()


def _read_outside(external: External, folder: Path | None) -> Iterator[bytes]:
    if folder is None:
        raise ValueError("its weights are in another file: pass the path of the model")
    path = Path(os.path.normpath(folder / external.location))
    if not path.is_relative_to(os.path.normpath(folder)) or not is_file(path):
        raise ValueError(f"its external data {external.location!r:.200} is missing")
    with path.open("rb") as file:
        file.seek(external.offset)
        left = path.stat().st_size if external.length is None else external.length
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            yield chunk
            left -= len(chunk)


@contextmanager
def _opened(model: Path | bytes) -> Iterator[Buffer]:
    if isinstance(model, bytes):
        yield model
        return
    if not model.stat().st_size:
        raise ValueError("the file is empty")
    with (
        model.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        yield content
