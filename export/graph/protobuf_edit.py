"""Change the graph of an ONNX file without decoding its weights: their bytes are copied.

Fields of protobuf may have any order (see ``wire_format``), so a changed graph followed by the old
bytes of its weights is a valid file.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import onnx

from .wire_format import GRAPH, INITIALIZER, Field, header, iterate_fields, read_tensor

SelectDecoded = Callable[[onnx.ModelProto], Callable[[str], bool]]
"""Takes the model without its graph; returns a test of the names of initializers to decode."""


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
            file.write(header(GRAPH, size) + inner)
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
        fields = list(iterate_fields(self._map, 0, len(self._map)))
        graphs = [field for field in fields if field.number == GRAPH]
        if len(graphs) != 1:
            raise ValueError(f"the file holds {len(graphs)} graphs, expected 1")
        outer = self._join([field for field in fields if field.number != GRAPH])
        is_decoded = select_decoded(onnx.load_from_string(outer))
        parts = list(iterate_fields(self._map, graphs[0].content, graphs[0].end))
        tensors = {
            part: read_tensor(self._map, part) for part in parts if part.number == INITIALIZER
        }
        self._weights = [part for part, tensor in tensors.items() if not is_decoded(tensor.name)]
        undecoded = set(self._weights)
        inner = self._join([part for part in parts if part not in undecoded])
        self.model = onnx.load_from_string(outer + header(GRAPH, len(inner)) + inner)
        self.names = frozenset(tensors[part].name for part in self._weights)
        self.external = any(tensor.external for tensor in tensors.values())
        self.locations = frozenset().union(*(tensor.locations for tensor in tensors.values()))

    def _join(self, fields: Sequence[Field]) -> bytes:
        return b"".join(self._map[start:end] for start, end in _runs(fields))


def _runs(fields: Sequence[Field]) -> Iterator[tuple[int, int]]:
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
